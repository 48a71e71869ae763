"""llama.cpp's own record of a tensor: where its bytes are and which kernels will read them.

The fields are those of ``struct ggml_tensor``; three of them say where a tensor is: ``data``, the address of
its bytes, ``buffer``, which tells the kernels their order, and ``extra``, the kernels for a packed order.
Pointers that are only passed on are declared as numbers: a model has hundreds of tensors, and a conversion of
each of their pointers takes as long as everything else that is done with it.
"""

from __future__ import annotations

import functools
from typing import Any

from shardload_native.layout import headers_match
from shardload_native.library import Llama, load, new_ffi, text

DECLARATIONS = """
    struct ggml_tensor {
        int type;
        uintptr_t buffer;
        int64_t ne[4];
        size_t nb[4];
        int op;
        int32_t op_params[16];
        int32_t flags;
        struct ggml_tensor * src[10];
        struct ggml_tensor * view_src;
        size_t view_offs;
        uintptr_t data;
        char name[64];
        uintptr_t extra;
        char padding[8];
    };
    const char * ggml_get_name(const struct ggml_tensor * tensor);
    const char * ggml_type_name(int type);
    size_t ggml_nbytes(const struct ggml_tensor * tensor);
    size_t ggml_tensor_overhead(void);
    uintptr_t ggml_backend_buffer_get_type(uintptr_t buffer);
    const char * ggml_backend_buft_name(uintptr_t buft);
    size_t ggml_backend_buft_get_alloc_size(uintptr_t buft, const struct ggml_tensor * tensor);
    void ggml_backend_tensor_set(struct ggml_tensor * tensor, uintptr_t data, size_t offset, size_t size);
    int ggml_backend_tensor_alloc(uintptr_t buffer, struct ggml_tensor * tensor, uintptr_t address);
"""
OBJECT_BYTES = 32
"""What ``ggml_tensor_overhead`` counts beside the structure itself."""


class TensorAccess:
    """The functions and the structure, for one loaded llama.cpp."""

    def __init__(self, llama: Llama) -> None:
        self.ffi = new_ffi(DECLARATIONS)
        folder = llama.library_path.parent
        self.lib: Any = self.ffi.dlopen(str(folder / llama.library_path.name.replace("llama", "ggml-base")))

    def fits(self) -> bool:
        """Whether the structure is the one that this build uses."""
        declared_bytes = int(self.ffi.sizeof("struct ggml_tensor"))
        return int(self.lib.ggml_tensor_overhead()) == declared_bytes + OBJECT_BYTES

    def tensor(self, pointer: Any) -> Tensor:
        """A tensor at an address, or behind a pointer of any cffi instance."""
        return Tensor(self, self.ffi.cast("struct ggml_tensor *", int(self.ffi.cast("uintptr_t", pointer))))


class Tensor:
    """One tensor of a model that is open; it must not be used after the model's weights are freed."""

    __slots__ = ("_access", "native")

    def __init__(self, access: TensorAccess, native: Any) -> None:
        self._access, self.native = access, native

    @property
    def name(self) -> str:
        return text(self._access.ffi, self._access.lib.ggml_get_name(self.native))

    @property
    def type_name(self) -> str:
        """As ggml writes it: ``q4_K``."""
        return text(self._access.ffi, self._access.lib.ggml_type_name(self.native.type))

    @property
    def type_code(self) -> int:
        """As files have it."""
        return int(self.native.type)

    @property
    def ne(self) -> tuple[int, ...]:
        """Elements per dimension, the contiguous one first."""
        return tuple(self.native.ne)

    @property
    def nbytes(self) -> int:
        """Bytes in the file's own order."""
        return int(self._access.lib.ggml_nbytes(self.native))

    @property
    def words(self) -> tuple[int, int, int]:
        """``data``, ``buffer`` and ``extra``."""
        native = self.native
        return native.data, native.buffer, native.extra

    def point(self, data: int, buffer: int, extra: int) -> None:
        """Set the three; nothing may compute on the tensor meanwhile."""
        native = self.native
        native.data, native.buffer, native.extra = data, buffer, extra

    @property
    def buffer_type(self) -> str:
        """The name of the order of its bytes: ``CPU_REPACK`` for a packed one."""
        access = self._access
        return text(
            access.ffi,
            access.lib.ggml_backend_buft_name(access.lib.ggml_backend_buffer_get_type(self.native.buffer)),
        )

    @property
    def copied_bytes(self) -> int:
        """Bytes that it takes in the order of its buffer."""
        lib = self._access.lib
        return int(
            lib.ggml_backend_buft_get_alloc_size(
                lib.ggml_backend_buffer_get_type(self.native.buffer), self.native
            )
        )

    def elsewhere(self, data: int, buffer: int, extra: int) -> Tensor:
        """A record of the same tensor with its bytes in another place; this one stays as it is."""
        access = self._access
        copy = access.ffi.new("struct ggml_tensor *")
        access.ffi.memmove(copy, self.native, access.ffi.sizeof("struct ggml_tensor"))
        other = Tensor(access, copy)
        other.point(data, buffer, extra)
        return other

    def copy_from(self, source: int, nbytes: int) -> None:
        """Have llama.cpp write bytes in the file's order to ``data``, in the order of its buffer."""
        self._access.lib.ggml_backend_tensor_set(self.native, source, 0, nbytes)


@functools.cache
def tensor_access() -> TensorAccess | None:
    """Access to tensors; None where this build's structure is not known to be the one declared here."""
    llama = load()
    if not headers_match(llama.library_path.parent.parent.parent / "include"):
        return None
    try:
        access = TensorAccess(llama)
    except (OSError, AttributeError):
        return None
    return access if access.fits() else None
