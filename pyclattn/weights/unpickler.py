"""A pickle machine that builds arrays, containers and numbers, and nothing else.

Why not a subclass of `pickle.Unpickler`: its allow-list (`find_class`) guards what is called, but neither memory nor
time. One opcode of it may allocate what it says (a memo at index 2^31, a long of 2 GB), a tuple nested a million deep
overflows the stack when it is hashed, and BUILD writes into whatever object it is given. Here every opcode is a method
of twenty lines at most; each is charged for what it makes and the sum is bounded, so time and memory are of the order
of the file's size. No Python object of the reader's process can be reached: a global is looked up in a table of
`Builder`s or becomes an inert `Unknown`, and REDUCE, NEWOBJ, OBJ and INST take these two alone. BUILD sets the state of
the types this package made. Extension codes and out-of-band buffers are refused.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Hashable
from typing import Any

from pyclattn.errors import ModelFormatError
from pyclattn.weights.pickled import Builder, Placeholder, Stateful, Unknown, kind_of

# What the objects of a pickle may cost in memory, besides the size of its file.
ROOM = 40 << 20
MAX_LINE = 1 << 20  # of the text opcodes
MAX_LONG = 255  # bytes of an integer; PyTorch's magic number has 10
# Hashes of numbers are no secret, so keys could be made to collide: integers of more bits and more tuples than any
# checkpoint has as keys are refused, and nothing nested deep or wide is hashed.
MAX_KEY_BITS = 60
MAX_TUPLE_KEYS = 4096
MAX_KEY_ITEMS = 64
# What is taken from the memo costs nothing to name again: what is then done with it must be short.
MAX_ARGS = 64
MAX_NAME = 1024

# Bytes an object costs, rounded up; an opcode that makes none still costs the time of a step.
STEP, SMALL, CONTAINER, SET, CALL = 8, 32, 72, 224, 512
SLOT, MEMO = 100, 100  # of an entry in a dict


class Machine:
    """Runs one pickle.

    Parameters
    ----------
    data : memoryview
    start : int
        Where the pickle begins.
    where : str
        File and member, for messages.
    find : callable
        ``find(module, name)``: the `Builder` or `Unknown` of a global, or an error.
    persistent : callable
        ``persistent(id)``: what an id outside the pickle stands for.
    room : int
        What the objects made may cost, in bytes.
    """

    def __init__(self, data: memoryview, start: int, where: str, find: Callable, persistent: Callable, room: int):
        self.data, self.position, self.size = data, start, len(data)
        self.where, self.find, self.persistent = where, find, persistent
        self.room = room
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.n_tuple_keys = 0

    def run(self) -> Any:
        """The object; ``position`` is then behind the pickle."""
        begin, data = self.position, self.data
        try:
            while True:
                code = data[self.position]
                self.position += 1
                if code == STOP:
                    return self._result()
                method, cost = OPCODES[code]
                self.room -= cost
                if self.room < 0:
                    self.charge(0)
                method(self)
        except ModelFormatError:
            raise
        except IndexError as error:
            what = "ends before its STOP" if self.position >= self.size else "takes more from its stack than there is"
            raise self.error(f"{what} (byte {self.position - begin})") from error
        except KeyError as error:
            raise self.error(f"byte {self.position - begin}: {error} is not allowed or not there") from error
        except (TypeError, ValueError, OverflowError, ArithmeticError, struct.error) as error:
            raise self.error(f"byte {self.position - begin}: {error}") from error

    def _result(self) -> Any:
        value = self.stack.pop()
        if self.stack or self.outer:
            raise self.error("leaves more than one object behind")
        return value

    def error(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.where}: the pickle {what}")

    def charge(self, n_bytes: int) -> None:
        """Account for memory about to be used."""
        self.room -= n_bytes
        if self.room < 0:
            raise self.error(f"needs more memory than the file's size and {ROOM} bytes: hostile, or not weights")

    # reading

    def take(self, n: int) -> bytes:
        start = self.position
        if n > self.size - start:
            raise self.error(f"says {n} bytes follow, the file has {self.size - start}")
        self.charge(n)
        self.position = start + n
        return bytes(self.data[start : start + n])

    def number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def line(self) -> bytes:
        start, length = self.position, 64
        while True:
            piece = bytes(self.data[start : start + length])
            end = piece.find(b"\n")
            if end >= 0:
                self.charge(end)
                self.position = start + end + 1
                return piece[:end]
            if len(piece) < length or length > MAX_LINE:
                raise self.error(f"has a line without an end, or of more than {MAX_LINE} bytes")
            length *= 4

    def text(self, n: int) -> str:
        raw = self.take(n)
        if not raw.isascii():
            self.charge(4 * n)
        return raw.decode("utf-8", "surrogatepass")

    def python2(self, raw: bytes) -> str | bytes:
        """Python 2 did not tell text from bytes: ASCII is taken as text."""
        return raw.decode("ascii") if raw.isascii() else raw

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def marked(self) -> list:
        items = self.stack
        self.stack = self.outer.pop()
        return items

    # numbers, text

    def int_line(self) -> None:
        raw = self.line()
        self.stack.append({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else self.decimal(raw))

    def decimal(self, raw: bytes) -> int:
        raw = raw.strip().removesuffix(b"L")
        if len(raw) > 2 * MAX_LONG:
            raise self.error(f"has an integer of {len(raw)} digits")
        return int(raw)

    def signed(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def long(self, n: int) -> None:
        if n > MAX_LONG:
            raise self.error(f"has an integer of {n} bytes, at most {MAX_LONG} are read")
        self.stack.append(int.from_bytes(self.take(n), "little", signed=True))

    def escaped(self) -> None:
        raw = self.line()
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in b"'\"":
            raise self.error("has a string without quotes")
        self.charge(len(raw))
        self.stack.append(self.python2(codecs.escape_decode(raw[1:-1])[0]))

    def unicode_line(self) -> None:
        raw = self.line()
        self.charge(4 * len(raw))
        self.stack.append(raw.decode("raw-unicode-escape"))

    # containers

    def make_list(self) -> None:
        items = self.marked()  # first: it changes the stack
        self.stack.append(items)

    def make_tuple(self, items: list) -> None:
        self.charge(8 * len(items))
        self.stack.append(tuple(items))

    def append(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is Placeholder:
            target.items.extend(items)
        else:
            raise self.error(f"appends to {kind_of(target)}")

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise self.error("has a key without a value")
        self.charge(SLOT * (len(items) // 2))
        if type(target) is dict:
            for i in range(0, len(items), 2):
                target[self.key(items[i])] = items[i + 1]
        elif type(target) is Placeholder:
            target.items.extend(zip(items[::2], items[1::2]))
        else:
            raise self.error(f"sets items of {kind_of(target)}")

    def add_items(self) -> None:
        items = self.marked()
        target = self.stack[-1]
        self.charge(SLOT * len(items))
        if type(target) is not set:
            raise self.error(f"adds items to {kind_of(target)}")
        target.update([self.key(item) for item in items])

    def make_dict(self) -> None:
        items = self.marked()
        self.stack.append({})
        self.set_items(items)

    def frozen(self) -> None:
        items = self.marked()
        self.charge(SLOT * len(items))
        self.stack.append(frozenset([self.key(item) for item in items]))

    def key(self, value: Any) -> Hashable:
        """A value that may be hashed: see MAX_KEY_BITS."""
        kind = type(value)
        if kind is str or kind is bytes or kind is bool or value is None:
            return value
        if kind is int:
            if value.bit_length() > MAX_KEY_BITS:
                raise self.error(f"has a key of {value.bit_length()} bits, at most {MAX_KEY_BITS} are read")
            return value
        if kind in (tuple, float, complex, frozenset):  # few, and shallow
            self.n_tuple_keys += 1
            if self.n_tuple_keys > MAX_TUPLE_KEYS:
                raise self.error(f"has more than {MAX_TUPLE_KEYS} keys that are neither text nor integers")
            if kind is tuple:
                if len(value) > MAX_KEY_ITEMS or not all(map(_may_be_in_key, value)):
                    raise self.error("has a key that is a nested or long tuple")
            elif kind is frozenset and len(value) > MAX_KEY_ITEMS:
                raise self.error("has a key that is a large set")
            return value
        if kind in (Unknown, Builder, Placeholder):  # by identity
            return value
        raise self.error(f"has a key that is {kind_of(value)}")

    # memo

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    # objects

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise self.error("names a global by something else than text")
        if len(name) + len(module) > MAX_NAME:
            raise self.error(f"names a global of {len(name) + len(module)} characters, at most {MAX_NAME} are read")
        self.stack.append(self.find(module, name))

    def global_lines(self) -> None:
        self.stack += [self.line().decode(), self.line().decode()]
        self.stack_global()

    def call(self, callee: Any, args: Any, keywords: Any = None) -> None:
        if type(args) is not tuple or (keywords and type(keywords) is not dict):
            raise self.error(f"calls {kind_of(callee)} with {kind_of(args)} for arguments")
        if type(callee) is Builder:
            if keywords or len(args) > MAX_ARGS:
                raise self.error(f"calls {callee.name} with keywords or more than {MAX_ARGS} arguments")
            self.stack.append(callee.function(self, *args))
        elif type(callee) is Unknown:
            if keywords:
                self.charge(8 * len(args))
            self.stack.append(Placeholder(callee.name, (*args, keywords) if keywords else args))
        else:
            raise self.error(f"calls {kind_of(callee)}")

    def reduce(self) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def new_with_keywords(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        self.call(self.stack.pop(), args, keywords)

    def make_object(self) -> None:
        items = self.marked()
        self.call(items[0], tuple(items[1:]))

    def instance(self) -> None:
        self.global_lines()
        callee = self.stack.pop()
        self.call(callee, tuple(self.marked()))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Placeholder:
            target.state = state
        elif isinstance(target, Stateful):
            target.set_state(self, state)
        elif type(target) not in (dict, list, set):  # attributes of a container (_metadata of a state dict) are dropped
            raise self.error(f"sets the state of {kind_of(target)}")

    # protocol

    def protocol(self) -> None:
        version = self.number(1)
        if version > 5:
            raise self.error(f"is of protocol {version}, at most 5 is read")

    def frame(self) -> None:
        length = self.number(8)
        if length > self.size - self.position:
            raise self.error(f"has a frame of {length} bytes, the file has {self.size - self.position}")

    def refused(self) -> None:
        raise self.error("uses extension codes or buffers outside the file, which are not allowed")


def _may_be_in_key(value: Any) -> bool:
    if type(value) in (str, bytes):
        return len(value) <= MAX_NAME
    return type(value) in (int, bool, float, type(None))


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(make(m))


STOP = ord(".")
# opcode -> (what it does, what it costs); the names are those of Python's pickletools.
OPCODES: dict[int, tuple[Callable[[Machine], Any], int]] = {
    0x80: (Machine.protocol, STEP),
    0x95: (Machine.frame, STEP),
    ord("("): (Machine.mark, CONTAINER),
    ord("0"): (lambda m: m.stack.pop() if m.stack else m.marked(), STEP),  # POP
    ord("1"): (Machine.marked, STEP),  # POP_MARK
    ord("2"): (lambda m: m.stack.append(m.stack[-1]), STEP),  # DUP
    ord("N"): (_push(lambda m: None), STEP),
    0x88: (_push(lambda m: True), STEP),
    0x89: (_push(lambda m: False), STEP),
    ord("I"): (Machine.int_line, SMALL),
    ord("L"): (_push(lambda m: m.decimal(m.line())), SMALL),
    ord("J"): (Machine.signed, SMALL),
    ord("K"): (_push(lambda m: m.number(1)), STEP),
    ord("M"): (_push(lambda m: m.number(2)), SMALL),
    0x8A: (lambda m: m.long(m.number(1)), SMALL),
    0x8B: (lambda m: m.long(m.number(4)), SMALL),
    ord("F"): (_push(lambda m: float(m.line())), SMALL),
    ord("G"): (_push(lambda m: struct.unpack(">d", m.take(8))[0]), SMALL),
    ord("S"): (Machine.escaped, SMALL),
    ord("T"): (_push(lambda m: m.python2(m.take(m.number(4)))), SMALL),
    ord("U"): (_push(lambda m: m.python2(m.take(m.number(1)))), SMALL),
    ord("V"): (Machine.unicode_line, SMALL),
    ord("X"): (_push(lambda m: m.text(m.number(4))), CONTAINER),
    0x8C: (_push(lambda m: m.text(m.number(1))), CONTAINER),
    0x8D: (_push(lambda m: m.text(m.number(8))), CONTAINER),
    ord("B"): (_push(lambda m: m.take(m.number(4))), SMALL),
    ord("C"): (_push(lambda m: m.take(m.number(1))), SMALL),
    0x8E: (_push(lambda m: m.take(m.number(8))), SMALL),
    0x96: (_push(lambda m: m.take(m.number(8))), SMALL),  # a bytearray: bytes do
    ord("]"): (_push(lambda m: []), CONTAINER),
    ord("}"): (_push(lambda m: {}), CONTAINER),
    ord(")"): (_push(lambda m: ()), STEP),
    0x8F: (_push(lambda m: set()), SET),
    ord("l"): (Machine.make_list, CONTAINER),
    ord("d"): (Machine.make_dict, CONTAINER),
    ord("t"): (lambda m: m.make_tuple(m.marked()), CONTAINER),
    0x85: (lambda m: m.make_tuple([m.stack.pop()]), CONTAINER),
    0x86: (lambda m: m.make_tuple([m.stack.pop(), m.stack.pop()][::-1]), CONTAINER),
    0x87: (lambda m: m.make_tuple([m.stack.pop(), m.stack.pop(), m.stack.pop()][::-1]), CONTAINER),
    ord("a"): (lambda m: m.append([m.stack.pop()]), STEP),
    ord("e"): (lambda m: m.append(m.marked()), STEP),
    ord("s"): (lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]), STEP),
    ord("u"): (lambda m: m.set_items(m.marked()), STEP),
    0x90: (Machine.add_items, STEP),
    0x91: (Machine.frozen, SET),
    ord("p"): (lambda m: m.put(m.decimal(m.line())), MEMO),
    ord("q"): (lambda m: m.put(m.number(1)), MEMO),
    ord("r"): (lambda m: m.put(m.number(4)), MEMO),
    0x94: (lambda m: m.put(len(m.memo)), MEMO),
    ord("g"): (lambda m: m.get(m.decimal(m.line())), STEP),
    ord("h"): (lambda m: m.get(m.number(1)), STEP),
    ord("j"): (lambda m: m.get(m.number(4)), STEP),
    ord("c"): (Machine.global_lines, SMALL),
    0x93: (Machine.stack_global, SMALL),
    ord("R"): (Machine.reduce, CALL),
    0x81: (Machine.reduce, CALL),  # NEWOBJ: a class and the arguments of its __new__
    0x92: (Machine.new_with_keywords, CALL),
    ord("o"): (Machine.make_object, CALL),
    ord("i"): (Machine.instance, CALL),
    ord("b"): (Machine.build, STEP),
    ord("P"): (_push(lambda m: m.persistent(m.line())), SMALL),
    ord("Q"): (_push(lambda m: m.persistent(m.stack.pop())), SMALL),
    **dict.fromkeys((0x82, 0x83, 0x84, 0x97, 0x98), (Machine.refused, STEP)),
}
