"""Reads the text of a compiled program (HLO): its arrays and their layouts, its collectives, the bytes it reads and writes.

XLA's own cost analysis counts the body of a loop once, and memory on the chip like main memory. Here a body counts as often
as it runs, and only arrays in the chip's main memory count as traffic.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping

_BITS = {"pred": 8, "s2": 2, "s4": 4, "u2": 2, "u4": 4, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
BETWEEN = " between slices"  # ends the kind of an exchange over the network that joins slices
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# These operations move no bytes themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "conditional", "call", "after-all", "domain"),
}
_PLUMBING = re.compile(r"while|body|cond|branch_\d+_fun|closed_call|eval_jaxpr|checkpoint|rematted_computation|shard_map")
_READS_A_PART = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in the form in which a chip holds it."""

    dtype: str
    dims: tuple[int, ...]
    layout: str  # "1,0:T(8,128)S(1)": axes from the fastest to the slowest, tiles, memory

    @property
    def item(self) -> float:
        """Bytes of an element."""
        return _BITS[self.dtype] / 8 if self.dtype in _BITS else _find_number(r"(\d+)", self.dtype, 8) / 8

    @property
    def bytes(self) -> int:
        """Bytes of its elements alone."""
        return math.ceil(math.prod(self.dims) * self.item)

    @property
    def padded(self) -> int:
        """Bytes including the filling of its tiles."""
        order, _, rest = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if not tile:
            return self.bytes
        tiles = [int(n) for n in tile[1].split(",")]
        sides = [self.dims[int(axis)] for axis in reversed(order.split(",")) if axis]
        sides = [1] * (len(tiles) - len(sides)) + sides
        for i, n in enumerate(reversed(tiles), 1):
            sides[-i] = -(-sides[-i] // n) * n
        return math.ceil(math.prod(sides) * self.item)

    @property
    def in_main_memory(self) -> bool:
        """True if it is in main memory, and not on the chip."""
        return _find_number(r"S\((\d+)\)", self.layout, 0) == 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # arrays of its result
    operands: tuple[str, ...]
    rest: str  # attributes
    number: int = 0  # number of a parameter, or value of a whole-number constant

    @property
    def scope(self) -> str:
        """The place in the Python program: `jit(train_step)/transpose(jvp(ResNet))/stem_conv/…`."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1].replace("\\'", "'") if found else ""

    def called(self) -> list[str]:
        """Lists the computations that the instruction uses."""
        names = re.findall(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)", self.rest)
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        return names + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices, `times` per step."""

    kind: str
    group: int  # number of devices in one exchange
    arrays: tuple[tuple[str, int], ...]  # (layer, bytes on one device) of each array that is reduced, gathered or moved
    times: int

    @property
    def bytes(self) -> int:
        """Bytes on one device per step."""
        return self.times * sum(size for _, size in self.arrays)

    @property
    def sent(self) -> float:
        """The fewest bytes that each device must send per step, in a ring over the group."""
        rounds = 2 if self.kind.removesuffix(BETWEEN) == "all-reduce" else 1
        return self.bytes * rounds * (1 if self.kind.startswith("collective") else (self.group - 1) / self.group)


class HloProgram:
    """A compiled program, parsed from its text."""

    def __init__(self, text: str):
        self.header = text[: text.find("\n")]
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        here: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith((" ", "\t")):
                found = _INSTRUCTION.match(line)
                if found:
                    inside, rest = _parenthesis(line, found.end())
                    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(re.findall(r"[A-Za-z_][\w.\-]*", inside))
                    if found[3] in ("constant", "iota", "parameter"):
                        operands = ()
                    number = int(inside) if found[3] in ("parameter", "constant") and inside.isdigit() else 0
                    here[found[1]] = Instruction(found[1], found[3], _arrays(found[2]), operands, rest, number)
            elif found := _COMPUTATION.match(line):
                here = self.computations[found[2]] = {}
                if found[1]:
                    self.entry = found[2]

    def parameters(self) -> list[Instruction]:
        """Lists the program's arguments; their scopes are their names in Python."""
        found = [i for i in self.computations[self.entry].values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: i.number)

    def aliased(self) -> int:
        """Counts the results that reuse the memory of an argument."""
        found = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", self.header)
        return len(re.findall(r"(?:may|must)-alias", found[1])) if found else 0

    def runs(self) -> dict[str, int]:
        """Returns {computation: number of runs in a step}, without computations inside fusions and reductions."""
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            counts[name] = counts.get(name, 0) + times
            for instruction in self.computations[name].values():
                if instruction.opcode in ("while", "conditional", "call", "async-start"):
                    inner = self._trips(instruction) if instruction.opcode == "while" else 1
                    for called in instruction.called():
                        if called in self.computations:
                            visit(called, times * inner)

        visit(self.entry, 1)
        return counts

    def _trips(self, loop: Instruction) -> int:
        """Returns how often a loop's body runs: the compiler's number, or the constant that its condition compares with."""
        if known := _find_number(r"known_trip_count[^0-9]*(\d+)", loop.rest, 0):
            return known
        found = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        condition = self.computations.get(found[1], {}) if found else {}
        compared = next((i for i in condition.values() if i.opcode == "compare" and "direction=LT" in i.rest), None)
        return max([1, *(condition[n].number for n in compared.operands if n in condition)]) if compared else 1

    def collectives(self) -> list[Collective]:
        """Lists all exchanges between devices."""
        devices = _find_number(r"num_partitions=(\d+)", self.header, 1)
        found, fused = [], set[int]()
        for name, times in self.runs().items():
            for instruction in self.computations[name].values():
                if between := re.search(r'_megascale_transfer_type="(\w+)"', instruction.rest):
                    if instruction.opcode == "send":  # the sum of a slice goes to the same devices of the others
                        slices = re.search(r'_megascale_target="\{([\d,]+)\}', instruction.rest)
                        arrays = self._moved("", instruction, name)[:1]
                        kind = between[1].lower().replace("_", "-") + BETWEEN
                        found.append(Collective(kind, slices[1].count(",") + 1 if slices else 2, arrays, times))
                    continue
                for one, within in self._exchanges(instruction, name):
                    channel = _find_number(r"channel_id=(\d+)", one.rest, 0) if within != name else 0
                    if channel and channel in fused:  # on TPU one exchange goes on beside several fusions, and each has it
                        continue
                    fused.add(channel)
                    kind = one.opcode.removesuffix("-start")
                    if instruction.opcode == "fusion" and "scatter" in instruction.rest.partition("calls=")[2][:80]:
                        kind = "reduce-scatter"  # on TPU an all-reduce and a slice for each device, in one fusion
                    arrays = self._moved(kind, one, within)
                    found.append(Collective(kind, _group(one.rest, devices), arrays, times))
        return found

    def _exchanges(self, instruction: Instruction, within: str) -> Iterator[tuple[Instruction, str]]:
        if instruction.opcode.removesuffix("-start") in _KINDS:
            yield instruction, within
        elif instruction.opcode == "fusion":
            for called in instruction.called():
                for inner in self.computations.get(called, {}).values():
                    if inner.opcode.removesuffix("-start") in _KINDS:
                        yield inner, called

    def _moved(self, kind: str, one: Instruction, within: str) -> tuple[tuple[str, int], ...]:
        """Lists (purpose, bytes) of each array: the results of an all-gather, which are larger, else the operands."""
        here = self.computations[within]
        operands = [here[name] for name in one.operands if name in here]
        if kind == "all-gather":
            results = one.arrays[len(operands) :] if one.opcode.endswith("-start") else one.arrays
            # Behind the barrier of a rematerialised pass, a parameter is a copy whose scope contains `remat2` and no layer.
            scopes = [self._origin(o, here, _layer) or one.scope for o in operands]
            return tuple((_purpose(scope, a), a.bytes) for scope, a in zip(scopes, results, strict=False))
        return tuple((_purpose(self._origin(o, here) or one.scope, a), a.bytes) for o in operands for a in o.arrays[:1])

    def _origin(self, instruction: Instruction, here: Mapping[str, Instruction], known: Callable[[str], object] = bool) -> str:
        """Returns the nearest `known` scope of the instruction behind an array, through tuples and copies; "" without one."""
        while not known(instruction.scope):
            if not instruction.operands or instruction.operands[0] not in here:
                return ""
            instruction = here[instruction.operands[0]]
        return instruction.scope

    def traffic(self) -> int:
        """Counts the bytes that a device reads from and writes to its main memory in a step, including the filling of tiles."""
        total = 0
        for name, times in self.runs().items():
            here = self.computations[name]
            total += times * sum(self._traffic_of(i, here) for i in here.values())
        return total

    def _traffic_of(self, instruction: Instruction, here: Mapping[str, Instruction]) -> int:
        if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            return 0
        arrays = instruction.arrays
        if instruction.opcode.endswith("-start"):  # (operand, result, context), and of a copy (result, operand, context)
            arrays = arrays[:1] if instruction.opcode == "copy-start" else arrays[1:2]
        written = [a.padded for a in arrays if a.in_main_memory]
        read = [sum(a.padded for a in here[n].arrays[:1] if a.in_main_memory) for n in instruction.operands if n in here]
        if instruction.opcode.removesuffix("-start") in _READS_A_PART:
            read = [min(size, arrays[0].padded) for size in read]
        if instruction.opcode == "send":
            written = []
        if instruction.opcode == "dynamic-update-slice":  # in place: only the changed part is read and written
            read, written = read[1:2], read[1:2]
        if instruction.opcode == "fusion":
            inside = next((self.computations[c] for c in instruction.called() if c in self.computations), {})
            read, written = self._parts(inside, read, written)
        return sum(read) + sum(written)

    def _parts(self, inside: Mapping[str, Instruction], read: list[int], written: list[int]) -> tuple[list[int], list[int]]:
        """Returns `read` and `written`, reduced where a fusion reads only a slice of an operand or changes one in place."""
        users: dict[str, list[Instruction]] = {}
        for instruction in inside.values():
            for name in instruction.operands:
                users.setdefault(name, []).append(instruction)
        read = list(read)
        for instruction in inside.values():
            number, by = instruction.number, users.get(instruction.name, [])
            if instruction.opcode != "parameter" or number >= len(read) or not by:
                continue
            if all(u.opcode in _READS_A_PART for u in by):
                read[number] = min(read[number], sum(u.arrays[0].padded for u in by))
            elif all(u.opcode == "dynamic-update-slice" and u.operands[0] == instruction.name for u in by):
                changed = sum(inside[u.operands[1]].arrays[0].padded for u in by if u.operands[1] in inside)
                complete = read[number]
                read[number] = min(complete, changed)
                written = [changed if size == complete else size for size in written]
        return read, written


def _find_number(pattern: str, text: str, default: int) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else default


def _parenthesis(line: str, start: int) -> tuple[str, str]:
    """Returns (content, rest) of the parenthesis whose content begins at `start`."""
    depth = 1
    for match in re.compile(r"[()]").finditer(line, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return line[start : match.start()], line[match.end() :]
    return line[start:], ""


def _arrays(shape: str) -> tuple[Array, ...]:
    found = _ARRAY.findall(shape)
    return tuple(
        Array(dtype, tuple(int(re.sub(r"\D", "", n)) for n in dims.split(",") if n), layout) for dtype, dims, layout in found
    )


def _group(rest: str, devices: int) -> int:
    """Returns the number of devices that exchange with one another."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return found[1].count(",") + 1
    return devices


def _layer(scope: str) -> str:
    """Returns a layer such as `stage4_block1/conv2` from a scope, or "" if the scope names none."""
    found = re.match(r"state\.(\w+)\[(.*)\]$", scope)
    if found:
        return "/".join(re.findall(r"'([^']+)'", found[2]))
    parts = [p for p in scope.split("/")[1:-1] if "(" not in p and "." not in p]  # without program and primitive
    return "/".join(p for p in parts if not _PLUMBING.fullmatch(p))


def _purpose(scope: str, array: Array) -> str:
    """Returns the layer for which an array is exchanged, as `stage4_block1/conv2 f32[3,3,512,512]`."""
    layer = _layer(scope) or "the loss and what else is summed"
    return f"{layer} {array.dtype}[{','.join(map(str, array.dims))}]"
