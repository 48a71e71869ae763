"""The way to llama.cpp's libraries and the kernel's memory calls; nothing happens at import."""
