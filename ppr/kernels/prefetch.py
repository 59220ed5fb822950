"""A hint to the processor: fetch this array element, it is needed soon.

Kernels that know their next accesses long before they make them give the hint as soon as they know, and go on
computing while memory answers. It never changes a result, and an index outside the array does no harm.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_READ, _KEEP_IN_ALL_CACHES, _DATA = 0, 3, 1


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Begin to fetch ``array[index]``, for a contiguous array of one dimension."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch", [address], ir.FunctionType(ir.VoidType(), [address, flag, flag, flag])
        )
        place = builder.bitcast(builder.gep(data, [arguments[1]]), address)
        builder.call(hint, [place, flag(_READ), flag(_KEEP_IN_ALL_CACHES), flag(_DATA)])
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch: Any = intrinsic(_prefetch)
