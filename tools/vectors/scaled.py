"""Scaled weights of spec/vectors/, and products of them: SPEC.md, sections 6.1 to 6.3.

A case has the name of its weight without `.weight`; its tensors are NAME.weight, NAME.weight_scale, NAME.x, which has a
vector in each row, and perhaps NAME.bias and NAME.input_scale. What is multiplied is said in words: none for the plain
product, "int8" for activations in eight bits, "static" for the input scale, "bias", and the dtype of the result.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from sparsefmt.dtypes import DTYPES, SUMMED_IN_DOUBLE, dtype_of
from tools.vectors.patterns import splitmix64, tensor

NAN, INFINITE = np.float32(np.nan), np.float32(np.inf)
ALL = ("", "bias", "int8", "int8 bias")


class Case(NamedTuple):
    q: np.ndarray
    scales: np.ndarray
    x: np.ndarray
    products: tuple[str, ...] = ALL
    bias: np.ndarray | None = None
    input_scale: np.ndarray | None = None


def weight(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any elements but NaN and infinite ones, of which half are zero; of F32 and F64, from 1 on and below 2."""
    q = tensor(DTYPES[dtype], shape, seed, 8)
    with np.errstate(all="ignore"):
        q = np.where(np.isfinite(q.astype(np.float64)), q, np.zeros_like(q))
    return np.ldexp(np.frexp(q)[0], 1) if dtype in ("F64", "F32") else q


def real(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers of 24 bits at most, as many above 0 as below, and of many sizes."""
    bits = splitmix64(seed, int(np.prod(shape, dtype=np.int64)))
    units = (bits >> np.uint64(40)).astype(np.float64) / (1 << 24) - 0.5
    return np.ldexp(units, (bits % np.uint64(9)).astype(np.int64) - 4).reshape(shape).astype(DTYPES[dtype].numpy)


def scales(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.abs(real(dtype, shape, seed))


def f32(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


def ties(cols: int) -> np.ndarray:
    """Tokens whose quotients by x's largest / 127 are next to k + 1/2, as near as binary32 comes, or are that."""
    tokens = []
    for largest in (*f32(0x3FD7AEF4, 0x3F8EF478, 0x3FB26BC6, 0x3FE282B1, 0x3FB05A27, 0x3FF46990), np.float32(127)):
        u = (largest / np.float32(127)).astype(np.float64)
        token = (u * (np.arange(cols) % 126 + 0.5)).astype(np.float32)
        token[1::2] *= -1
        token[cols // 2] = largest
        tokens.append(token)
    return np.stack(tokens)


def cases() -> dict[str, Case]:
    """What a reader multiplies."""
    return {**shapes(), **dtypes(), **quantized(), **corners()}


def shapes() -> dict[str, Case]:
    """Each shape of scales, rows that are no multiple of 16, several tiles, no rows and no columns, a stack."""
    tokens = real("F32", (3, 24), 20)
    return {
        "one": Case(weight("I8", (20, 33), 1), np.float32(0.01), real("F32", (3, 33), 2), ALL, real("F32", (20,), 3)),
        "one of 1": Case(weight("I8", (9, 8), 4), scales("F32", (1,), 5), real("F32", (1, 8), 6), ("", "int8")),
        "one of 1, 1": Case(weight("I8", (9, 24), 33), scales("F32", (1, 1), 34), tokens, ("", "int8")),
        "rows": Case(weight("I8", (37, 24), 7), scales("F32", (37,), 8), tokens, ALL, real("F32", (37,), 9)),
        "rows of others": Case(weight("I8", (37, 24), 7), scales("F32", (37,), 35), tokens, ("", "int8")),
        "rows, 1": Case(weight("I8", (16, 24), 10), scales("BF16", (16, 1), 11), tokens, ALL, real("BF16", (16,), 12)),
        "groups": Case(weight("I8", (19, 24), 13), scales("F16", (19, 3), 14), tokens, ALL, real("F16", (19,), 15)),
        "groups of 1 column": Case(weight("I8", (5, 24), 16), scales("F32", (5, 24), 17), tokens, ("", "int8")),
        "1 row, groups": Case(weight("I8", (1, 24), 18), scales("F32", (1, 4), 19), tokens, ("", "int8")),
        "tiles": Case(weight("I8", (35, 200), 21), scales("F32", (35, 5), 22), real("F32", (2, 200), 23), ("", "int8")),
        "no rows": Case(weight("I8", (0, 24), 1), scales("F32", (0,), 1), tokens, ("", "int8")),
        "no columns": Case(
            weight("I8", (2, 0), 1), scales("F32", (2, 3), 24), real("F32", (2, 0), 1), ALL, real("F32", (2,), 25)
        ),
        "3 dimensions": Case(weight("I8", (2, 3, 8), 26), scales("F32", (2, 2), 27), tokens, ("", "int8")),
        "1 dimension": Case(weight("I8", (7,), 28), scales("F32", (7,), 29), real("F32", (2, 1), 30), ("", "int8")),
        'ß \U0001f600 "\\\n': Case(weight("I8", (3, 24), 31), scales("F32", (3,), 32), tokens, ("", "int8")),
    }


def dtypes() -> dict[str, Case]:
    """Of weights, of x and of results; which type sums have."""
    named, bias = {}, real("F32", (18,), 199)
    for number, dtype in enumerate(("U8", "F8_E4M3", "F8_E5M2", "BF16", "F16", "F32", "F64", "I32", "BOOL", "F4")):
        q = weight(dtype, (18, 40), 100 + number)
        products: tuple[str, ...] = ("", "bias", "F16", "bias BF16", "F32")
        by_group = scales("F32", (18, 4), 120 + number)
        named[dtype] = Case(q, by_group, real("F32", (2, 40), 140), products, bias)
    for number, dtype in enumerate(("F64", "F16", "BF16", "I32", "I64")):
        q, x = weight("I8", (18, 40), 160 + number), real("F32", (2, 40), 180)
        x = ((x * 2**30).astype(np.int64) if dtype[0] == "I" else x).astype(DTYPES[dtype].numpy)
        if dtype == "I64":  # integers that are next to half-way points of binary32, and at one in binary64
            x[:] = (1 << 62) + (np.arange(40) << 56) + (1 << 38) + np.where(np.arange(40) % 2, 1, -1)
        products = ("", "int8", "int8 bias", "int8 F16", "bias BF16")
        named[f"x of {dtype}"] = Case(q, scales("F32", (18, 2), 200 + number), x, products, bias)
    # rounded to binary32 first, these would be at half-way points of the result
    half_way = np.zeros((6, 24))
    half_way[:, 0] = 1 + np.array([2.0**-8, 2.0**-8, 3 * 2.0**-8, 3 * 2.0**-8, 2.0**-11, 3 * 2.0**-11])
    half_way[:, 1] = 2.0**-40 * np.array([1, -1, 1, -1, 1, -1])
    ties = np.pad(half_way[:, :1], [(0, 0), (0, 23)])
    half_way = np.concatenate([half_way, ties, -half_way, half_way * 2.0**-140])
    ones = np.ones((1, 24), np.float32)
    named["F4, 21 of them"] = Case(weight("F4", (3, 7), 150), scales("F32", (3,), 151), real("F32", (2, 7), 152), ("",))
    named["half-way results"] = Case(half_way, np.float32(1), ones, ("", "BF16", "F16", "F32"))
    return named


def quantized() -> dict[str, Case]:
    """Roundings of activations in eight bits."""
    q, by_row = weight("I8", (21, 90), 300), scales("F32", (21, 3), 301)
    bias = real("F32", (21,), 302)
    # quotients that binary32 rounds to 77.5, 117.5, 9.5, 21.5, 79.5 from below, and to 98.5, 26.5, 4.5, 2.5 from above
    quotients = (
        (0x42EA5515, 0x3FC1835F),
        (0x43652DF3, 0x3FF9A8CC),
        (0x419418EC, 0x3FF96D58),
        (0x41F261DB, 0x3FB460A3),
        (0x42F662A9, 0x3FC65916),
        (0x43401EE5, 0x3FF9A8CC),
        (0x420B0DDC, 0x3FA7EA18),
        (0x4093F7F1, 0x3F83870F),
        (0x4054C1D0, 0x3FAA34A6),
    )
    named = {
        f"quotient {number}": Case(
            np.int8([[1, 2, -3, 4]] * 3),
            np.float32([1, 0.5, 3]),
            np.concatenate([f32(x), -f32(x), f32(x, x)])[None],
            ("int8 static",),
            None,
            f32(u),
        )
        for number, (x, u) in enumerate(quotients)
    }
    static = np.float32([[-1e38, 1e38, 0, 127, -127, 127.5, -127.5, 128, 0.5, -0.5, 1.5, 2.5] * 2])
    x = np.concatenate([static, static * np.float32(0.25), -static])
    named |= {
        "ties": Case(q, by_row, ties(90), ("int8", "int8 bias", "int8 bias F16", "int8 bias BF16"), bias),
        "tokens": Case(q, by_row, tokens(90), (*ALL, "int8 static", "int8 static bias"), bias, f32(0x3C23D70A)),
        "static 1": Case(
            weight("I8", (17, 24), 303), scales("F32", (17,), 304), x, ("int8 static",), None, f32(0x3F800000)
        ),
        "static 1/4": Case(
            weight("I8", (17, 24), 305), scales("F32", (17, 2), 306), x, ("int8", "int8 static"), None, np.float32(0.25)
        ),
        "static, least": Case(weight("I8", (3, 24), 307), np.float32(1), x, ("int8 static",), None, f32(1)),
        "static of BF16": Case(
            weight("I8", (3, 24), 308), np.float32(1), x, ("int8 static",), None, scales("BF16", (1,), 309)
        ),
        "-128": Case(
            np.full((17, 90), -128, np.int8),
            scales("F32", (17,), 310),
            np.concatenate([np.ones((1, 90)), -np.ones((1, 90)), real("F32", (1, 90), 311)]).astype(np.float32),
        ),
    }
    named["-128"] = named["-128"]._replace(products=("", "int8"))
    return named


def tokens(cols: int) -> np.ndarray:
    """Those that others must not be changed by, and those that are of an unusual size."""
    x = real("F32", (12, cols), 320)
    x[1], x[2] = 0, -0.0
    x[3, 5], x[4, 6], x[5, 7] = NAN, INFINITE, -INFINITE
    x[6] *= f32(0x00000100)  # subnormal
    x[7] = np.where(np.arange(cols) % 3, f32(0x00000001), f32(0x800000BE))  # 190 times the least; u is the least
    x[8] = np.where(np.arange(cols) % 2, f32(0x00000001), f32(0x8000003F))  # 63 times: u is 0
    x[9, 11] = np.finfo(np.float32).max
    x[10] = np.where(np.arange(cols) == 80, x[10], 0)
    return x


def corners() -> dict[str, Case]:
    """Scales of 0, tiny and huge ones; values that are not finite; zeros of either sign."""
    q, x = weight("I8", (18, 24), 400), real("F32", (4, 24), 401)
    x[1, 3], x[2, 5] = INFINITE, NAN
    zero = scales("F32", (18, 2), 402)
    zero[::2, 0], zero[1::4, 1], zero[3] = 0, -0.0, 0
    wild = scales("F32", (18, 2), 403)
    wild[0], wild[1], wild[2], wild[3] = np.finfo(np.float32).max, f32(1), [f32(1)[0], 1], [1, np.finfo(np.float32).max]
    wild[4], wild[5] = np.float32(1e-20), np.float32(1e30)
    tiny = np.concatenate([x * np.float32(1e-25), x * np.float32(1e30)])
    tiny = np.where(np.isfinite(tiny), tiny, np.float32(0))
    tiny[0] = 0  # times the largest scale, what is not exactly 0 would be NaN
    any_bits = tensor(DTYPES["F8_E5M2"], (18, 24), 404, 6)
    negative = np.where(np.arange(24) < 12, -np.abs(weight("I8", (18, 24), 405)), 0).astype(np.int8)
    least = np.zeros((2, 24), np.float32)
    least[0, :4], least[1, 20:] = f32(0x00000100), f32(0x80000100)
    signs = real("F32", (18,), 406)
    signs[::3], signs[1::3] = -0.0, 0
    return {
        "scale 0": Case(q, zero, x, ALL, signs),
        "scales of any size": Case(q, wild, tiny, ALL, signs),
        "scales of F16, subnormal": Case(q, (scales("F16", (18,), 407) * 1e-5).astype(np.float16), x, ALL, signs),
        "weights not finite": Case(any_bits, scales("F32", (18, 3), 408), x, ("", "bias"), signs),
        "below 0, too small": Case(negative, np.full((18, 2), 1e-20, np.float32), np.abs(tiny), ALL, signs),
        "sums too small": Case(np.where(negative, 1, 0).astype(np.int8), np.float32(1e-10), least, ALL, signs),
        "all zero": Case(np.zeros((18, 24), np.int8), scales("F32", (18, 2), 409), x, ALL, signs),
    }


def one_case() -> dict[str, Case]:
    """What files of METADATA have, and another name."""
    q, by_row, x = weight("I8", (6, 8), 500), scales("F32", (6,), 503), real("F32", (1, 8), 501)
    return {"q": Case(q, by_row, x, ("", "int8")), 'q/\b\f\n\r\t"\\': Case(q, by_row, x, ())}


def long() -> dict[str, Case]:
    """Rows whose sums exceed 32 bits, in one group and in several."""
    cols = 140_000
    q = np.full((2, cols), -128, np.int8)
    q[1, ::2], q[0, -3:] = 127, (1, 2, 3)
    x = np.stack([np.ones(cols, np.float32), np.where(np.arange(cols) % 2, np.float32(-1), np.float32(1))])
    return {
        "long": Case(q, np.float32([0.5, 3]), x, ("int8",)),
        # over 2^24, so that sums are rounded; half-way between two numbers of binary32, too
        "large sums": Case(
            np.where(np.arange(2100) < [[2099], [2098], [2097], [2090], [1]], 127, 3).astype(np.int8),
            np.float32([1, 1, 1, 1 / 3, 1]),
            np.where(np.arange(2100) < [[2100], [2080], [1050]], 1, 0.05).astype(np.float32),
            ("int8", "int8 BF16"),
        ),
    }


# ------------------------------------------------------------------------------------------------------------- Refused


def refused() -> tuple[dict[str, Case], dict[str, str]]:
    """Cases whose scales do not fit their weights, and the code of each."""
    q, x = weight("I8", (6, 8), 500), real("F32", (1, 8), 501)
    ones = np.ones((6, 2), np.float32)
    by_code: dict[str, dict[str, np.ndarray]] = {
        "scales-dtype": {
            "F64": ones.astype(np.float64),
            "I32": ones.astype(np.int32),
            "F8_E4M3": ones.astype(DTYPES["F8_E4M3"].numpy),
            "F8_E8M0": ones.astype(DTYPES["F8_E8M0"].numpy),
        },
        "scales-shape": {
            "(2)": ones[0],
            "(8)": np.ones(8, np.float32),
            "(1, 2)": ones[:1],
            "(2, 6)": ones.T,
            "(6, 3)": np.ones((6, 3), np.float32),
            "(6, 16)": np.ones((6, 16), np.float32),
            "(6, 0)": ones[:, :0],
            "(0)": ones[0, :0],
            "(1, 4)": np.ones((1, 4), np.float32),
            "(5)": np.ones(5, np.float32),
            "(7, 2)": np.ones((7, 2), np.float32),
            "(6, 2, 1)": ones[:, :, None],
        },
        "scales-value": {
            "NaN": np.where(np.arange(12) == 7, NAN, ones.reshape(-1)).reshape(6, 2),
            "Inf": np.where(np.arange(12) == 11, INFINITE, ones.reshape(-1)).reshape(6, 2),
            "-Inf": np.where(np.arange(12) == 11, -INFINITE, ones.reshape(-1)).reshape(6, 2),
            "below 0": np.where(np.arange(12) == 0, -f32(1), ones.reshape(-1)).reshape(6, 2),
            "one, NaN": np.float32(np.nan),
            "one, below 0": np.float32([-1]),
        },
    }
    found, codes = {}, {}
    for code, wrong in by_code.items():
        for name, given in wrong.items():
            found[f"{code} {name}"], codes[f"{code} {name}"] = Case(q, given, x, ("", "int8")), code
    for dtype in "U8", "F8_E4M3", "BF16", "I16":
        name = f"activations-dtype {dtype}"
        found[name], codes[name] = Case(weight(dtype, (6, 8), 502), ones, x, ("int8",)), "activations-dtype"
    for number, given in enumerate((0.0, -0.0, -1.0, np.nan, np.inf, [1.0, 1.0], np.zeros(0))):
        name = f"input-scale {number}"
        found[name] = Case(q, ones, x, ("int8 static",), None, np.float32(given))
        codes[name] = "input-scale"
    return found, codes


METADATA = {
    "scales-metadata": {
        "empty": "",
        "no JSON": "{'q.weight': 'q.weight_scale'}",
        "an array": '[["q.weight", "q.weight_scale"]]',
        "a text": '"q.weight"',
        "nil": "null",
        "a number": '{"q.weight": 1}',
        "no text": '{"q.weight": null}',
        "nested": '{"q.weight": {"q.weight": "q.weight_scale"}}',
        "cut off": '{"q.weight": "q.weight_scale"',
        "a comma too many": '{"q.weight": "q.weight_scale",}',
        "a comma too few": '{"q.weight": "q.weight_scale" "q.x": "q.weight_scale"}',
        "bytes behind it": '{"q.weight": "q.weight_scale"} {}',
        "an escape": '{"q.weight": "q.weight_scale", "q\\x2ex": "q.weight_scale"}',
        "a short escape": '{"q.weight": "q.weight_scale\\u00"}',
        "a control character": '{"q.weight": "q.weight_scale\t"}',
        "twice": '{"q.weight": "q.weight_scale", "q.weight": "q.weight_scale"}',
        "twice, with an escape": '{"q.weight": "q.weight_scale", "\\u0071.weight": "q.weight_scale"}',
    },
    "scales-missing": {
        "scales": '{"q.weight": "q.scale"}',
        "weight": '{"q.weight": "q.weight_scale", "p.weight": "q.weight_scale"}',
        "other scales": '{"q.weight": "q.weight_scale", "q.x": "q.scale"}',
        "no name": '{"q.weight": ""}',
        "NUL": '{"q.weight": "q.weight_scale\\u0000"}',
        "half a pair": '{"q.weight": "q.weight_scale\\ud83d"}',
    },
    "ok": {
        "white space": ' \t\r\n{ "q.weight"\n:\t"q.weight_scale" , "q.x":"q.weight_scale"\r}\n ',
        "escapes": '{"\\u0071.w\\u0065ight": "q.weight\\u005Fscale",'
        ' "q\\/\\b\\f\\n\\r\\t\\"\\\\.weight": "q.weight_scale"}',
        "upper and lower case": '{"q.weight": "q.weight\\u005fscale"}',
        "two weights": '{"q.x": "q.weight_scale", "q.weight": "q.weight_scale"}',
    },
}
"""Texts of `sparsefmt.scales`, by what is wrong with them. "ok": nothing."""


# --------------------------------------------------------------------------------------------------------------- Files


def tensors_of(cases: dict[str, Case]) -> dict[str, np.ndarray]:
    """The tensors of a file."""
    named = {}
    for name, case in cases.items():
        named[f"{name}.weight"], named[f"{name}.weight_scale"], named[f"{name}.x"] = case.q, case.scales, case.x
        if case.bias is not None:
            named[f"{name}.bias"] = case.bias
        if case.input_scale is not None:
            named[f"{name}.input_scale"] = case.input_scale
    return {name: np.asarray(array) for name, array in named.items()}


def metadata_of(cases: dict[str, Case]) -> dict[str, str]:
    """Which scales belong to which weight."""
    return {"sparsefmt.scales": json.dumps({f"{name}.weight": f"{name}.weight_scale" for name in cases})}


def products_of(cases: dict[str, Case], codes: dict[str, str]) -> list[dict[str, str]]:
    """What a reader multiplies, as manifest.json has it but for the elements; with the code of its error, if it has
    one."""
    found: list[dict[str, str]] = []
    for name, case in cases.items():
        for words in case.products:
            product: dict[str, Any] = {"weight": f"{name}.weight", "x": f"{name}.x"}
            for word in words.split():
                if word == "bias":
                    product["bias"] = f"{name}.bias"
                elif word == "static":
                    product["input_scale"] = f"{name}.input_scale"
                elif word == "int8":
                    product["activations"] = "int8"
                else:
                    product["result"] = word
            in_double = any(dtype_of(array.dtype).name in SUMMED_IN_DOUBLE for array in (case.q, case.x))
            product.setdefault("result", "F64" if in_double and "int8" not in words else "F32")
            found.append(product | ({"error": codes[name]} if name in codes else {}))
    return found
