"""Write the cffi declarations of llama.cpp from the headers that llama-cpp-python installs.

    python tools/generate_declarations.py [--check] [--headers DIRECTORY]

Only what shardload calls is declared; the types it needs are followed through the headers. The
results are ``declarations.py`` (for cffi) and ``interface.py`` (the same functions as a Protocol, for
mypy) in ``native/shardload_native``, committed, and compared by a test.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path

HEADERS = ("ggml.h", "ggml-alloc.h", "ggml-backend.h", "ggml-cpu.h", "gguf.h", "llama.h")
PACKAGE = Path(__file__).resolve().parent.parent / "native" / "shardload_native"

LLAMA = """
    llama_backend_init llama_log_set llama_print_system_info llama_supports_gpu_offload
    llama_model_default_params llama_context_default_params llama_sampler_chain_default_params
    llama_model_load_from_file llama_model_load_from_splits llama_model_free
    llama_model_get_vocab llama_model_n_ctx_train llama_model_n_embd llama_model_n_embd_out
    llama_model_n_layer
    llama_model_meta_val_str llama_model_desc llama_model_size llama_model_n_params
    llama_model_has_encoder llama_model_has_decoder llama_model_is_recurrent llama_model_is_hybrid
    llama_model_n_cls_out
    llama_vocab_type llama_vocab_n_tokens llama_vocab_get_text llama_vocab_get_attr llama_vocab_is_eog
    llama_vocab_bos llama_vocab_eos llama_vocab_eot llama_vocab_sep llama_vocab_get_add_bos
    llama_vocab_get_add_eos llama_vocab_get_suppress_tokens
    llama_tokenize llama_token_to_piece llama_detokenize
    llama_init_from_model llama_free llama_n_ctx llama_n_batch
    llama_get_memory llama_pooling_type llama_set_n_threads
    llama_set_abort_callback
    llama_memory_seq_rm llama_memory_seq_cp llama_memory_clear llama_memory_seq_pos_max
    llama_memory_seq_pos_min
    llama_state_seq_get_size llama_state_seq_get_data llama_state_seq_set_data
    llama_encode llama_decode
    llama_get_logits_ith llama_get_embeddings_ith llama_get_embeddings_seq
    llama_sampler_chain_init llama_sampler_chain_add llama_sampler_free llama_sampler_sample
    llama_sampler_apply llama_sampler_accept llama_sampler_init_greedy llama_sampler_init_dist
    llama_sampler_init_top_k llama_sampler_init_top_p llama_sampler_init_min_p llama_sampler_init_typical
    llama_sampler_init_temp llama_sampler_init_penalties llama_sampler_init_logit_bias
    llama_sampler_init_grammar
"""
GGML = """
    ggml_version ggml_backend_dev_by_type ggml_backend_dev_backend_reg ggml_backend_reg_get_proc_address
    ggml_backend_buft_name
    ggml_init ggml_free ggml_new_tensor_2d ggml_nbytes ggml_mul_mat ggml_new_graph ggml_build_forward_expand
    ggml_tensor_overhead ggml_graph_overhead
    ggml_backend_alloc_ctx_tensors_from_buft ggml_backend_alloc_ctx_tensors ggml_backend_buffer_free
    ggml_backend_buffer_clear ggml_backend_buffer_get_base ggml_backend_buffer_get_size
    ggml_backend_buffer_is_host
    ggml_backend_tensor_set ggml_backend_tensor_get ggml_backend_init_by_type ggml_backend_free
    ggml_backend_graph_compute
    gguf_get_arr_n gguf_get_key
"""
TYPES = [
    "ggml_backend_buffer_type_t",
    "ggml_backend_dev_get_extra_bufts_t", "llama_token_data", "llama_token_data_array", "llama_logit_bias",
    "llama_model_kv_override",
    "llama_vocab_type", "llama_token_attr", "llama_pooling_type", "llama_flash_attn_type", "llama_load_mode",
    "ggml_log_level", "ggml_backend_dev_type",
]  # fmt: skip


def without_macros(source: str) -> str:
    """C source without comments, preprocessor lines and the macros around declarations."""
    source = re.sub(r"/\*.*?\*/", " ", source, flags=re.S)
    source = re.sub(r"//[^\n]*", " ", source)
    source = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", " ", source, flags=re.M)
    source = re.sub(r'extern\s+"C"\s*\{', " ", source)
    source = re.sub(r"\b(?:LLAMA_API|GGML_API|GGML_BACKEND_API|GGML_CALL)\b", " ", source)
    return re.sub(r"GGML_(?:NORETURN|ATTRIBUTE_FORMAT\([^)]*\)|RESTRICT)", " ", source)


def statements(source: str) -> list[str]:
    """The top-level declarations, each on one line without its semicolon."""
    found: list[str] = []
    depth, start = 0, 0
    for at, character in enumerate(source):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(character, 0)
        depth = max(depth, 0)  # the brace that closes extern "C"
        if character == ";" and depth == 0:
            found.append(" ".join(source[start:at].split()).lstrip("} "))
            start = at + 1
    return found


def declared_name(statement: str) -> tuple[str, str] | None:
    """(kind, name) of a declaration: kind is typedef, struct, enum or function."""
    if statement.startswith(("DEPRECATED", "static", "inline")) or "DEPRECATED" in statement:
        return None
    if statement.startswith("typedef"):
        pointer = re.search(r"\(\s*\*\s*(\w+)\s*\)\s*\(", statement)
        plain = re.sub(r"\[[^\]]*\]\s*$", "", statement)
        name = pointer.group(1) if pointer and "{" not in statement else re.findall(r"\w+", plain)[-1]
        return "typedef", name
    body = re.match(r"(struct|enum)\s+(\w+)\s*\{", statement)
    if body:
        return body.group(1), body.group(2)
    function = re.match(r"[\w\s*]+?\b(\w+)\s*\(", statement)
    return ("function", function.group(1)) if function else None


class Headers:
    """All declarations of the headers by kind and name."""

    def __init__(self, directory: Path) -> None:
        self.digests = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in HEADERS}
        self.known: dict[tuple[str, str], str] = {}
        for name in HEADERS:
            for statement in statements(without_macros((directory / name).read_text())):
                if (key := declared_name(statement)) is not None:
                    self.known.setdefault(key, statement)

    def select(self, functions: list[str], types: list[str]) -> list[str]:
        """The named declarations and every type they need, types first."""
        chosen: dict[tuple[str, str], str] = {}
        for name in types:
            self._take_type(name, chosen)
        for name in functions:
            statement = self.known[("function", name)]
            self._follow(statement, chosen)
            chosen[("function", name)] = statement
        return list(chosen.values())

    def _take_type(self, name: str, chosen: dict[tuple[str, str], str]) -> None:
        for kind in ("typedef", "struct", "enum"):
            key = (kind, name)
            if key in self.known and key not in chosen:
                statement = self.known[key]
                self._follow(statement, chosen, own=name)
                chosen[key] = statement

    def _follow(self, statement: str, chosen: dict[tuple[str, str], str], own: str = "") -> None:
        by_value = set(re.findall(r"\benum\s+(\w+)", statement))
        by_value |= set(re.findall(r"\bstruct\s+(\w+)(?!\s*\*)\b(?!\s*\*)", statement))
        for word in dict.fromkeys(re.findall(r"\w+", statement)):
            if word == own or (
                ("struct", word) in self.known
                and word not in by_value
                and ("typedef", word) not in self.known
            ):
                continue
            if ("typedef", word) in self.known or word in by_value:
                self._take_type(word, chosen)


def generate(directory: Path) -> dict[str, str]:
    """The text of each generated module for the headers in ``directory``."""
    headers = Headers(directory)
    functions = (LLAMA + GGML).split()
    lines = headers.select(functions, TYPES)
    digests = "\n".join(f'    "{name}": "{digest}",' for name, digest in headers.digests.items())
    notice = '"""Generated by tools/generate_declarations.py from installed headers: do not edit."""\n\n'
    declarations = (
        f'LLAMA_CPP_PYTHON = "{importlib.metadata.version("llama-cpp-python")}"\n\n'
        f"HEADER_DIGESTS = {{\n{digests}\n}}\n\n"
        'CDEF = """\n' + "\n".join(pretty(line) for line in lines) + '\n"""\n'
    )
    methods = "\n".join(method(headers.known[("function", name)]) for name in functions)
    interface = (
        "from __future__ import annotations\n\nfrom typing import Any, Protocol\n\n\n"
        "class LlamaInterface(Protocol):\n"
        '    """The C functions that shardload calls; structures and pointers are cffi objects."""\n\n'
        + methods + "\n"
    )  # fmt: skip
    return {"declarations.py": notice + declarations, "interface.py": notice + interface}


def method(statement: str) -> str:
    """One C function as a method of the Protocol."""
    head, arguments = re.match(r"(.*?\w)\s*\((.*)\)$", statement).groups()  # type: ignore[union-attr]
    returned, name = re.match(r"(.*?)\b(\w+)$", head).groups()  # type: ignore[union-attr]
    depth, parts = 0, [""]
    for character in arguments:
        depth += {"(": 1, ")": -1}.get(character, 0)
        parts = [*parts, ""] if character == "," and depth == 0 else [*parts[:-1], parts[-1] + character]
    parts = [part for part in parts if part.strip() not in ("", "void")]
    names = [re.findall(r"\w+", part)[-1].replace("type", "type_") for part in parts]
    listed = ", ".join(
        ["self", *(f"{one}: {python_type(part)}" for one, part in zip(names, parts, strict=True))]
    )
    listed += ", /" if parts else ""
    line = f"    def {name}({listed}) -> {python_type(returned)}: ..."
    if len(line) <= 110:
        return line
    if len(listed) > 102:
        listed = listed.replace(", ", ",\n        ") + ","
    return f"    def {name}(\n        {listed}\n    ) -> {python_type(returned)}: ..."


def python_type(declaration: str) -> str:
    """The Python type that cffi takes or gives for a C type."""
    if "*" in declaration:
        return "Any"
    words = set(re.findall(r"\w+", declaration))
    for python, c_types in (
        ("bool", {"bool"}),
        ("float", {"float", "double"}),
        ("int", {"int", "int32_t", "int64_t", "uint32_t", "uint64_t", "size_t", "enum"}),
        ("int", {"llama_token", "llama_pos", "llama_seq_id"}),
    ):
        if words & c_types:
            return python
    return "None" if words == {"void"} else "Any"


def pretty(statement: str) -> str:
    """One declaration, with the members of structs and enums on lines of their own."""
    match = re.match(r"(.*?\{)(.*)(\}.*)$", statement)
    if not match:
        return statement + ";"
    head, body, tail = match.groups()
    separator = "," if re.match(r"(typedef )?enum", head) else ";"
    members = [member.strip() for member in body.split(separator)]
    return "\n".join([head, *(f"    {member}{separator}" for member in members if member), tail + ";"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 on a difference")
    parser.add_argument("--headers", type=Path, default=Path(sysconfig.get_path("purelib")) / "include")
    options = parser.parse_args()
    texts = generate(options.headers)
    if options.check:
        return int(any(text != (PACKAGE / name).read_text() for name, text in texts.items()))
    for name, text in texts.items():
        (PACKAGE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
