"""The judgement of `npcd doctor`: each function takes facts and gives a Check. Decides only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from enum import StrEnum

from engines.room import GIB
from prompts.formats import PLAIN

PYTHON_MIN, PYTHON_TRIED = (3, 11), (3, 13)
KV_VALUE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # a block of 32 values has a scale of two bytes
KV_BLOCK = 32
TRUNK_LEN = 1000  # tokens of a trunk in "room for so many trunks"
FREE_MIN = 1 * GIB
REDIS_MIN = (6, 2)
STORES = {"redis": "recent memory in a store", "postgres": "archive"}
COMPILER = "apt-get install -y g++"
# llama.cpp's names of CPU features, and the kernel's names of the same.
X86 = {
    "AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}  # fmt: skip
ARM = {"NEON": "asimd", "DOTPROD": "asimddp", "FP16_VA": "asimdhp", "MATMUL_INT8": "i8mm", "SVE": "sve", "SME": "sme"}
TOLD = ("avx2", "avx512f", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve")
# Without these in the library a processor that has them computes at a fraction of its speed.
FAST = ("AVX2", "AVX512", "DOTPROD", "MATMUL_INT8")


class Outcome(StrEnum):
    """How a check came out. Only a failure keeps npcd from serving."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, its outcome, the finding, and a fix in one line."""

    name: str
    outcome: Outcome
    says: str
    fix: str = ""


def ok(name: str, says: str) -> Check:
    """Nothing to do."""
    return Check(name, Outcome.OK, says)


def warn(name: str, says: str, fix: str) -> Check:
    """It will serve, and could do better."""
    return Check(name, Outcome.WARN, says, fix)


def fail(name: str, says: str, fix: str) -> Check:
    """It will not serve."""
    return Check(name, Outcome.FAIL, says, fix)


def well(checks: Sequence[Check]) -> bool:
    """True when npcd would serve."""
    return all(check.outcome is not Outcome.FAIL for check in checks)


def no_use(checks: Sequence[Check]) -> bool:
    """True when the model keeps npcd from serving: it would on every other machine as well."""
    return any(check.outcome is Outcome.FAIL and check.name == "model" for check in checks)


def as_text(checks: Sequence[Check]) -> str:
    """For people: a line per check, and below it the fix."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.outcome:<5} {check.name:<{width}}  {check.says}")
        if check.fix:
            lines.append(f"{'':<{width + 8}}-> {check.fix}")
    counts = {o: sum(check.outcome is o for check in checks) for o in Outcome}
    lines.append(f"{len(checks)} checks: {counts[Outcome.FAIL]} failed, {counts[Outcome.WARN]} could be better")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """For programs."""
    return json.dumps({"ok": well(checks), "checks": [asdict(check) for check in checks]}, indent=2)


# -- the machine -----------------------------------------------------------------------------------------------------


def python(version: tuple[int, int]) -> Check:
    """The interpreter."""
    says = f"Python {version[0]}.{version[1]}"
    if version < PYTHON_MIN:
        return fail("python", f"{says} is too old", "install Python 3.11, 3.12 or 3.13 and run `make setup` with it")
    if version > PYTHON_TRIED:
        return warn("python", f"{says} is newer than what npcd is tested on", "use Python 3.11, 3.12 or 3.13")
    return ok("python", says)


def libraries(required: Mapping[str, str], installed: Mapping[str, str]) -> list[Check]:
    """Each library that is missing, or whose version is outside its range (">=3.10", "<8,>=5.29")."""
    checks = []
    for name, versions in sorted(required.items()):
        fix = f"pip install '{name}{versions}'"
        if name not in installed:
            checks.append(fail("libraries", f"{name} is missing", fix))
        elif not in_range(installed[name], versions):
            checks.append(warn("libraries", f"{name} is {installed[name]}; npcd works with {versions}", fix))
    if not required:
        return [warn("libraries", "npcd is not installed: its versions are unknown", "make setup, or pip install .")]
    some = ", ".join(f"{name} {installed[name]}" for name in ("llama-cpp-python", "grpcio") if name in installed)
    return checks or [ok("libraries", f"{len(required)} in versions that npcd works with, among them {some}")]


def in_range(version: str, versions: str) -> bool:
    """True when a version fulfils all of these conditions, each one of >=, < and == with a number."""
    for condition in versions.split(","):
        sign = condition.rstrip("0123456789.")
        have, bound = _numbers(version), _numbers(condition.removeprefix(sign))
        if not {">=": have >= bound, "<": have < bound, "==": have == bound}[sign]:
            return False
    return True


def _numbers(version: str) -> list[int]:
    """The numbers at the front of a version, without zeros at their end: 2.0.1rc1 gives [2, 0, 1], 3.0 gives [3]."""
    numbers = [int(number) for part in re.findall(r"^[\d.]*", version) for number in part.split(".") if number]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def compiler(found: str, engine_there: bool) -> Check:
    """A C++ compiler: installing llama.cpp needs one, running it does not."""
    if found:
        return ok("compiler", found)
    if engine_there:
        return ok("compiler", f"none, and none is needed until llama-cpp-python is built anew ({COMPILER})")
    return fail("compiler", "no C++ compiler, and llama-cpp-python has yet to be built", COMPILER)


def cpu(
    machine: str, has: AbstractSet[str], built: AbstractSet[str], cores: int, threads: int, limit: str = ""
) -> Check:
    """The processor's instructions (the kernel's names) against those that llama.cpp was compiled for (its own names).
    npcd may use `cores`; `limit` says of how many and why, where that is not all of them.
    """
    names = ARM if machine in ("aarch64", "arm64") else X86
    built_flags = {names[feature] for feature in built if feature in names}
    said = " ".join(flag for flag in TOLD if flag in has) or "none of the fast instructions"
    says = f"{machine}, {cores} {limit or 'cores'}, {said}"
    again = "build it here: pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
    lacking = sorted(built_flags - has) if has else []
    if lacking:
        return fail("cpu", f"{says}; llama.cpp was built for {', '.join(lacking)}, which is not here", again)
    if threads > cores:
        return warn("cpu", f"{says}; engine.threads is {threads}", f"make it {max(1, cores - 1)}, or 0")
    if names is X86 and has and "avx2" not in has:
        return warn("cpu", f"{says}; without avx2 models are several times slower", "use a newer processor")
    idle = [names[feature] for feature in FAST if feature in names and names[feature] in has - built_flags]
    if built and idle:
        return warn("cpu", f"{says}; llama.cpp was built without {', '.join(idle)}", again)
    return ok("cpu", says)


def address(setting: str, where: str, problem: str, fix: str = "") -> Check:
    """Somewhere to listen."""
    if not problem:
        return ok(setting, f"{where} is free")
    flag = "--http" if setting == "serve.http" else "--listen"
    return fail(
        setting, f"{where}: {problem}", fix or f"stop what is there (ss -lpn shows it), or choose another {flag}"
    )


# -- memory ----------------------------------------------------------------------------------------------


def data_folder(path: str, trouble: str, fix: str, free: int) -> Check:
    """Where the journal is; bytes that are free there."""
    if trouble:
        return fail("memory.folder", f"{path}: {trouble}", fix)
    says = f"{path}, {free / GIB:.1f} GiB are free"
    if free < FREE_MIN:
        return warn("memory.folder", f"{says}; when it is full nothing new is remembered", "make room, or see --data")
    return ok("memory.folder", says)


def own_server(store: str, program: str, missing: str) -> Check:
    """A server that npcd starts itself; `missing` ("reason; remedy") says why there is none."""
    if program:
        return ok(store, f"npcd's own: {program}")
    says, _, fix = missing.partition("; ")
    return warn(store, f"{says}, so there is no {STORES[store]}", fix)


def no_store(store: str) -> Check:
    """It is switched off."""
    return ok(store, f"off: there is no {STORES[store]}")


def wrong_url(store: str, why: str) -> Check:
    """A URL, or a setting that belongs to it, that serve would refuse."""
    return fail(store, why, f"give another one with --{store}, or none for npcd's own")


def away(store: str, why: str) -> Check:
    """A server by URL that is not there, or does not let npcd do its work ("reason; remedy"). Serving goes on."""
    says, _, fix = why.partition("; ")
    return warn(store, f"{says}; until it is there, there is no {STORES[store]}", fix or "start it, or look at its URL")


def redis(version: str, keeps: str, policy: str) -> Check:
    """A Redis by URL, with values of its INFO (empty: not given). `keeps` is its appendonly."""
    says = f"by URL, version {version or 'unknown'}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < REDIS_MIN:
        return warn("redis", f"{says}; npcd wants 6.2 or newer", "use a newer one, or none for npcd's own")
    if policy.startswith("allkeys-"):
        return warn("redis", f"{says}; {policy} evicts memory of NPCs", "CONFIG SET maxmemory-policy noeviction")
    if keeps == "no":
        return warn("redis", f"{says}; without appendonly a restart forgets", "CONFIG SET appendonly yes")
    return ok("redis", f"{says}{', kept in its file' if keeps else ''}")


def postgres(version: str, role: str, may_more: bool) -> Check:
    """A PostgreSQL by URL that is migrated, and whose role may add."""
    says = f"by URL, version {version}, as {role}"
    if may_more:
        return warn(
            "postgres", f"{says}, a role that may read or change events", "run npcd migrate with --serving-role NAME"
        )
    return ok("postgres", f"{says}, a role that may add events and forget players, and nothing else")


# -- the model -------------------------------------------------------------------------------------------------------


def model(path: str, size: int, said: Mapping[str, str]) -> Check:
    """A GGUF file that llama.cpp reads. Its licence is its user's to keep."""
    name = said.get("general.name") or path
    licence = said.get("general.license", "")
    says = f"{name}: {said.get('general.architecture')}, {size / (1 << 20):.1f} MiB, licence {licence or 'not stated'}"
    if not licence:
        return warn("model", says, "look up under which licence you may use it; the file does not say")
    return ok("model", says)


def no_model(why: str) -> Check:
    """A file that serve would refuse ("model: reason; remedy")."""
    says, _, fix = why.removeprefix("model: ").rpartition("; ")
    other = "give another file with --model, or none for the one that ships"
    return fail("model", says or fix, other if not says else fix if "--model" in fix else f"{fix}, or {other}")


def kv_type(wanted: str, said: Mapping[str, str]) -> list[Check]:
    """A KV type that does not fit the model's heads."""
    lengths = head_lens(said)
    wrong = [length for length in lengths or () if length % KV_BLOCK]
    if wanted == "f16" or not wrong:
        return []
    says = f"{wanted} needs heads of a multiple of {KV_BLOCK} values, this model's have {wrong[0]}"
    return [fail("engine.kv_type", says, "make engine.kv_type f16")]


def adapters(names: Sequence[str], loaded_max: int) -> Check:
    """The adapters that archetypes may name. More of them than are in memory at once take turns."""
    says = f"{len(names)} ({', '.join(names)}), {loaded_max} in memory at once"
    return ok("adapters", says) if names else warn("adapters", "none in adapters.folder", "put GGUF files there")


def template(kind: str, why: str, given: str = "") -> Check:
    """The prompt's layout. `given` is the setting engine.chat_template."""
    says = f"{kind}: {why}" + (f" (engine.chat_template = {given})" if given else "")
    if kind != "plain" or given == PLAIN:
        return ok("template", says)
    fix = "take a chat model whose template passes, or name its format in engine.chat_template; plain text works worse"
    return warn("template", says, fix)


def world(world_id: str, made_for_npcd: bool, bad_language: str, warnings: Sequence[str]) -> Check:
    """A world's TOML: its language's tag, and whether the model was trained on its words."""
    says = f"'{world_id}'"
    if bad_language:
        fix = "write a tag as in en, pt-BR or zh-Hant, or leave it out"
        return fail("world", f"{says}: its language {bad_language!r} is no BCP 47 tag", fix)
    if warnings:
        return warn("world", f"{says}: {'; '.join(w.partition('; ')[0] for w in warnings)}",
                    "use words that the model knows, or a chat model of your own (--model)")  # fmt: skip
    known = "the model knows its words" if made_for_npcd else "nobody can tell which words this model was trained on"
    return ok("world", f"{says}: {known}")


def context(context_len: int, needed: int, trained: int, sight_room: int, sight_min: int) -> Check:
    """Tokens of an NPC's sequence, against the needs of worlds and the context that the model was trained with."""
    says = f"{context_len} tokens each; a world at its caps needs {needed}, the model was trained on {trained or '?'}"
    if context_len < needed:
        fix = f"make engine.context_len {needed} or more, or lower caps.lore, caps.words, caps.archetype, caps.persona"
        return fail("context", says, fix)
    if 0 < trained < context_len:
        return warn("context", f"{says}; beyond that models ramble", f"lower engine.context_len to {trained}")
    if sight_room < sight_min:
        fix = f"raise caps.intent_tail by {sight_min - sight_room} or more"
        return warn("context", f"{says}; only {sight_room} tokens are left for what NPCs see", fix)
    return ok("context", says)


def head_lens(said: Mapping[str, str]) -> tuple[int, int] | None:
    """How many values a head of keys and one of values have; None when the file does not say."""
    heads, width = _number(said, "attention.head_count"), _number(said, "embedding_length")
    if not (heads and width):
        return None
    usual = width // heads
    return _number(said, "attention.key_length") or usual, _number(said, "attention.value_length") or usual


def _number(said: Mapping[str, str], key: str) -> int:
    text = said.get(f"{said.get('general.architecture', '')}.{key}", "")
    return int(text) if text.isdigit() else 0


def token_bytes(said: Mapping[str, str], kv_type: str = "f16") -> int | None:
    """Bytes of KV that one token takes, from layers, KV heads and head lengths of the file; None when it does not say,
    or keeps its KV in another form.
    """
    lengths = head_lens(said)
    layers, heads = _number(said, "block_count"), _number(said, "attention.head_count")
    if not layers or lengths is None or _number(said, "attention.kv_lora_rank"):
        return None
    values = layers * (_number(said, "attention.head_count_kv") or heads) * sum(lengths)
    return round(values * KV_VALUE_BYTES.get(kv_type, KV_VALUE_BYTES["f16"]))


@dataclass(frozen=True, slots=True)
class Room:
    """The sequences that NPCs share: the settings of that name, `context_len` as llama.cpp pads it; then, in bytes, the
    memory needed beside them and the memory there is; `buffers` are for logits and for computing. `free` (0: unknown)
    is the lower one of `free_machine` and `free_groups`. The latter is left of control groups' limits (None without
    one).
    """

    sequences: int
    prefixes: int
    lanes: int
    context_len: int
    ram: int
    weights: int
    free: int
    on_device: bool
    kv_type: str = "f16"
    free_machine: int = 0
    free_groups: int | None = None
    buffers: int = 0


def memory(room: Room, each: int | None) -> Check:
    """KV of all sequences, with one more as scratch, against what is free; `each` is bytes per token."""
    divided = (
        f"{room.sequences} sequences ({room.prefixes} for shared beginnings, {room.lanes} lanes, "
        f"{room.sequences - room.prefixes - room.lanes} residents)"
    )
    if each is None:
        return ok("memory", f"{divided}; the size of this model's KV is measured when it is loaded")
    stream = room.context_len * each
    kv = (room.sequences + 1) * stream
    says = (
        f"{divided} of {room.context_len} tokens, {each / 1024:g} KiB each as {room.kv_type}, and "
        f"{room.ram // (TRUNK_LEN * each)} trunks of {TRUNK_LEN:,} tokens in RAM (scheduler.kv.ram_mib): "
        f"{kv / GIB:.2f} GiB of KV"
    )
    if room.buffers:
        says += f", {room.buffers / GIB:.2f} GiB for logits and computing"
    if room.on_device or not room.free:
        return ok("memory", f"{says}{', on the device: not checked' if room.on_device else ''}")
    says += f", {room.free / GIB:.2f} GiB are free"
    if room.free_groups is not None:
        machine, groups = room.free_machine / GIB, room.free_groups / GIB
        says += f" ({machine:.2f} GiB on the machine, {groups:.2f} GiB of the control group's limit)"
    if kv + room.buffers > room.free:
        fit = (room.free - room.buffers) // stream - 1
        if fit >= room.prefixes + room.lanes + 2:
            halved = room.kv_type == "f16" and kv * 17 / 32 + room.buffers <= room.free
            smaller = " or set engine.kv_type to q8_0" if halved else ""
            return fail("memory", says, f"lower engine.sequences to {fit} or less{smaller}")
        return fail("memory", says, "lower engine.context_len, or engine.sequences with scheduler.kv.lanes")
    if kv + room.buffers + room.weights + room.ram > room.free:
        more = (room.weights + room.ram) / GIB
        return warn(
            "memory", f"{says}; with weights and scheduler.kv.ram_mib {more:.2f} more", "lower engine.sequences"
        )
    return ok("memory", says)


def together(needs: Mapping[str, int], free: int) -> Check:
    """The memory of all engines, in bytes by name, against what is free (0: unknown)."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in needs.items())
    total = sum(needs.values())
    says = f"all engines take up to {total / GIB:.2f} GiB together ({parts})"
    if not free:
        return ok("memory", says)
    says += f", {free / GIB:.2f} GiB are free"
    if total > free:
        largest = max(needs, key=lambda name: needs[name])
        section = "engine" if largest == "llama" else f"engines.{largest}"
        return fail("memory", says, f"lower {section}.sequences or {section}.context_len, or leave them at auto")
    return ok("memory", says)
