"""Attacks through safetensors files: name -> (what makes the file, what the answer must say)."""

import json

MANY = 1 << 20


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda folder: (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def one(data=b"0000", **changes):
    return raw({"w": entry(**changes)}, data)


FILES = {
    "a header of 2^63 bytes": (raw(b"{}", length=2**63), "truncated"),
    "a header of 100 MB that is not there": (raw(b"{}", length=100_000_000), "truncated"),
    "a header nested a million deep": (raw(b'{"a":' * MANY), "nested"),
    "lists nested a million deep": (raw(b"{" + b"[" * MANY), "nested"),
    "brackets hidden behind quotes": (raw(b'{"\\\\":' + b"[" * MANY), "nested"),
    "a million dicts": (raw(b"{" + b",".join(b'"%d":{}' % i for i in range(MANY)) + b"}"), "memory"),
    "a million numbers": (raw(b'{"w":[' + b"1," * MANY + b"1]}"), "memory"),
    "a number of a million digits": (raw(b'{"w":' + b"9" * MANY + b"}"), "not JSON"),
    "a number of 1e999": (raw(b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', b"0000"), "whole numbers"),
    "a name of a megabyte": (raw({"n" * MANY: 3}), "must have dtype"),
    "a name twice, late": (
        raw(b"{" + b",".join(b'"%06d":1' % (i % 99_999) for i in range(100_000)) + b"}"), "named twice"),
    "a shape that overflows 64 bits": (one(shape=(2**61, 2**61)), "needs"),
    "nothing times 2^61": (one(b"", shape=(0, 2**61, 2**61), offsets=(0, 0)), "beyond any array"),
    "a shape of 100,000 ones": (one(shape=(1,) * 100_000), "whole numbers"),
    "a negative offset": (one(offsets=(-4, 0)), "whole numbers"),
    "offsets that overflow": (one(offsets=(2**63 - 4, 2**63)), "whole numbers"),
    "offsets of truth": (one(offsets=(False, True)), "whole numbers"),
    "three offsets": (one(offsets=(0, 4, 8)), "whole numbers"),
    "one body for many names": (raw({str(i): entry() for i in range(2000)}, b"0000"), "overlaps"),
    "a body hidden in a gap": (raw({"w": entry(offsets=(4, 8))}, b"evil0000"), "gap"),
    "a body behind the end": (raw({"w": entry()}, b"0000" + b"evil"), "8 bytes of data"),
    "more fields than the format has": (one(location="../x"), "nothing else"),
    "elements of 4 bits": (one(dtype="F4"), "not supported"),
    "a type that is a list": (one(dtype=["F32"] * 1000), "not supported"),
    "50,000 tensors of nothing": (raw({str(i): entry("U8", (0,), (0, 0)) for i in range(50_000)}), "memory"),
    "20,000 tensors of nothing": (raw({str(i): entry("U8", (0,), (0, 0)) for i in range(20_000)}), ""),
    "bool of other bytes": (one(b"\x07", dtype="BOOL", offsets=(0, 1)), "got 7"),
    "metadata that is no text": (raw({"__metadata__": {"a": [[1]]}}), "nested"),
    "a lone surrogate": (raw(b'{"\\ud800":1}'), "must have dtype"),
    "not UTF-8": (raw(b'{"\xff":1}'), "not JSON"),
    "not a number": (raw(b'{"w":NaN}'), "not JSON"),
    "a pickle behind the name": (lambda f: b"\x80\x04cos\nsystem\n(S'touch " + str(f).encode() + b"/executed'\ntR.",
                                 "plain pickle"),
}  # fmt: skip
