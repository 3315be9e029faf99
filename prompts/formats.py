"""Chat templates of well-known formats, by name: for files that carry none, or a wrong one (engine.chat_template).

Each is the plain form of its family, without tools, dates or thoughts. prompts/templates.py proves them as it proves a
template from a file.
"""

from __future__ import annotations

PLAIN = "plain"  # no template: one long text


def _each(system: str, user: str, assistant: str, ask: str, first: str = "") -> str:
    """A template that writes each message with its role's text, where {} stands for the content, and then asks."""
    out = [first, "{% for m in messages %}"]
    for test, text in (("if m.role == 'system'", system), ("elif m.role == 'user'", user), ("else", assistant)):
        out.append(f"{{% {test} %}}{text.replace('{}', '{{ m.content | trim }}')}")
    return "".join([*out, "{% endif %}{% endfor %}{% if add_generation_prompt %}", ask, "{% endif %}"])


def _marked(
    opened: str, closed: str, roles: tuple[str, str, str] = ("system", "user", "assistant"), first: str = ""
) -> str:
    """A template whose messages are all alike: `opened` with the role's name for {}, the content, `closed`."""
    system, user, assistant = (f"{opened.replace('{}', role)}{{}}{closed}" for role in roles)
    return _each(system, user, assistant, opened.replace("{}", roles[2]), first)


_BOS, _EOS, _N = "{{ bos_token }}", "{{ eos_token }}", "{{ '\\n' }}"
# The world stands in the first line's message.
_INST = (
    _BOS + "{% set world = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}{open}"
    "{% if loop.first and world %}{before}{{ world }}{behind}{% endif %}{{ m.content | trim }}{close}"
    "{% else %}{lead}{{ m.content | trim }}{end}{% endif %}{% endfor %}"
)


def _inst(open_: str, close: str, lead: str, end: str, before: str = "", behind: str = "{{ '\\n\\n' }}") -> str:
    parts = {"open": open_, "close": close, "lead": lead, "end": end, "before": before, "behind": behind}
    text = _INST
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


FORMATS: dict[str, str] = {
    "chatml": _marked(f"<|im_start|>{{}}{_N}", f"<|im_end|>{_N}"),
    "command-r": _marked(
        "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>", "<|END_OF_TURN_TOKEN|>", ("SYSTEM", "USER", "CHATBOT"), _BOS
    ),
    "deepseek": _each("{}", "<｜User｜>{}", f"<｜Assistant｜>{{}}{_EOS}", "<｜Assistant｜>", _BOS),
    "gemma": _inst(
        f"<start_of_turn>user{_N}", f"<end_of_turn>{_N}", f"<start_of_turn>model{_N}", f"<end_of_turn>{_N}"
    ) + f"{{% if add_generation_prompt %}}<start_of_turn>model{_N}{{% endif %}}",
    "glm4": _each(
        f"<|system|>{_N}{{}}", f"<|user|>{_N}{{}}", f"<|assistant|>{_N}{{}}", "<|assistant|>", "[gMASK]<sop>"
    ),
    "gpt-oss": _each(
        f"<|start|>developer<|message|># Instructions{_N}{_N}{{}}<|end|>", "<|start|>user<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}<|end|>", "<|start|>assistant<|channel|>final<|message|>",
    ),
    "granite": _marked("<|start_of_role|>{}<|end_of_role|>", f"<|end_of_text|>{_N}"),
    "llama2": _inst(
        "[INST] ", " [/INST]", " ", f" {_EOS}{_BOS}", f"<<SYS>>{_N}", f"{_N}<</SYS>>{_N}{_N}"
    ),
    "llama3": _marked(f"<|start_header_id|>{{}}<|end_header_id|>{_N}{_N}", "<|eot_id|>", first=_BOS),
    "llama4": _marked(f"<|header_start|>{{}}<|header_end|>{_N}{_N}", "<|eot|>", first=_BOS),
    "mistral": _inst("[INST] ", " [/INST]", " ", _EOS),
    "mistral-v7": _each(
        "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", "[INST]{}[/INST]", f"{{}}{_EOS}", "", _BOS
    ),
    "phi3": _marked(f"<|{{}}|>{_N}", f"<|end|>{_N}"),
    "phi4": _marked("<|im_start|>{}<|im_sep|>", "<|im_end|>"),
    "vicuna": _each(f"{{}}{_N}{_N}", f"USER: {{}}{_N}", f"ASSISTANT: {{}}{_EOS}{_N}", "ASSISTANT:", _BOS),
    "zephyr": _marked(f"<|{{}}|>{_N}", f"{_EOS}{_N}"),
    PLAIN: "",
}  # fmt: skip
