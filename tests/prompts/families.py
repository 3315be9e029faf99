"""Chat templates of well-known families, cut down to how each behaves: our own words, with the quirk that matters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A template, the tokens that it writes, and True if the world has a message (or a place) of its own."""

    template: str
    controls: tuple[str, ...]
    system: bool = True
    bos: str = ""
    eos: str = ""


_ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_TEXT_OF = (
    "{% macro text_of(content) %}{% if content is string %}{{ content | trim }}{% else %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}{% endif %}{% "
    "endmacro %}"
)

FAMILIES: dict[str, Family] = {
    # The world stands inside the first line; BOS comes again before every line; contents are stripped.
    "llama2": Family(
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set world = "
        "messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set world = false %}{% endif %}"
        "{% for m in rest %}" + _ALTERNATE + "{% if loop.index0 == 0 and world != false %}"
        "{% set content = '<<SYS>>\\n' + world + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}"
        "{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), bos="<s>", eos="</s>",
    ),
    # Numbers its tools by None, and has the date.
    "llama3.1": Family(
        "{{- bos_token }}{% if tools is not none %}{{ raise_exception('there are tools') }}{% endif %}"
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% if messages[0]['role'] == 'system' %}{% set world = messages[0]['content'] | trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set world = '' %}{% endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + world + "
        "'<|eot_id|>' }}"
        "{% for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
        "m['content'] | trim "
        "+ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", eos="<|eot_id|>",
    ),
    # Refuses a system message.
    "gemma2": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}" + _ALTERNATE + "{% set role = 'model' if m['role'] == 'assistant' "
        "else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"), system=False, bos="<bos>", eos="<eos>",
    ),
    # The world comes before the first line; contents are strings or lists.
    "gemma3": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% if messages[0]['content'] is string %}"
        "{% set first = messages[0]['content'] + '\\n\\n' %}{% else %}"
        "{% set first = messages[0]['content'][0]['text'] + '\\n\\n' %}{% endif %}{% set rest = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}" + _ALTERNATE +
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + (first if "
        "loop.first else '') }}"
        "{% if m['content'] is string %}{{ m['content'] | trim }}{% elif m['content'] is iterable %}"
        "{% for item in m['content'] %}{% if item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% "
        "endfor %}"
        "{% else %}{{ raise_exception('Invalid content type') }}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>",
    ),
    # Moves the world into the last line, where no cache survives it.
    "mistral-v3": Family(
        "{% if messages[0]['role'] == 'system' %}{% set world = messages[0]['content'] %}{% set rest = "
        "messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}" + _ALTERNATE +
        "{% if m['role'] == 'user' %}{% if loop.last and world is defined %}"
        "{{ '[INST] ' + world + '\\n\\n' + m['content'] + '[/INST]' }}{% else %}{{ '[INST] ' + m['content'] + "
        "'[/INST]' }}"
        "{% endif %}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), system=False, bos="<s>", eos="</s>",
    ),
    # Tekken: no spaces around the markers, a date in the default system message.
    "mistral-tekken": Family(
        "{% set today = strftime_now('%Y-%m-%d') %}{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set world = messages[0]['content'] if messages[0]['content'] is string else "
        "messages[0]['content'][0]['text'] %}"
        "{% set rest = messages[1:] %}{% else %}{% set world = 'The date is ' + today + '.' %}{% set rest = "
        "messages %}"
        "{% endif %}{{ '[SYSTEM_PROMPT]' + world + '[/SYSTEM_PROMPT]' }}{% for m in rest %}" + _ALTERNATE +
        "{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + "
        "eos_token }}"
        "{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), bos="<s>", eos="</s>",
    ),
    "phi3": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), eos="<|endoftext|>",
    ),
    "phi4": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% "
        "endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"), eos="<|im_end|>",
    ),
    # Says who it is when there is no system message.
    "qwen2.5": Family(
        "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + messages[0]['content'] + "
        "'<|im_end|>\\n' }}"
        "{% else %}{{ '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' or (m.role == 'system' and not loop.first) or (m.role == 'assistant' and not "
        "m.tool_calls) %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>",
    ),
    # Takes thoughts out of earlier answers; a closed thought before the next one.
    "qwen3": Family(
        "{% if tools %}{{ '# Tools' }}{% endif %}{% set ns = namespace(last=messages | length - 1) %}"
        "{% for m in messages[::-1] %}{% set index = messages | length - 1 - loop.index0 %}"
        "{% if ns.last == messages | length - 1 and m.role == 'user' and not "
        "(m.content.startswith('<tool_response>') "
        "and m.content.endswith('</tool_response>')) %}{% set ns.last = index %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.content is string %}{% set content = m.content %}{% else %}{% set "
        "content = '' %}"
        "{% endif %}{% if m.role == 'assistant' %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% "
        "endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<think>", "</think>"), eos="<|im_end|>",
    ),
    # No marker around the world; an answer is opened with a thought.
    "deepseek-r1": Family(
        "{% set ns = namespace(first=false, world='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.world = m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.world }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}"
        "{% if m['role'] == 'assistant' and m['content'] is not none %}{% set content = m['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
    ),
    "command-r": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set world = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set world = false %}{% "
        "endif %}"
        "{% if world != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + world + '<|END_OF_TURN_TOKEN|>' "
        "}}{% endif %}"
        "{% for m in rest %}" + _ALTERNATE + "{% set content = m['content'] %}{% if m['role'] == 'user' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
        "{% elif m['role'] == 'assistant' %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif "
        "%}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
         "<|CHATBOT_TOKEN|>"), bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>",
    ),
    # The request to answer may carry controls, and comes in the loop.
    "granite": Family(
        "{% if messages[0]['role'] == 'system' %}{% set world = messages[0]['content'] %}{% set rest = "
        "messages[1:] %}"
        "{% else %}{% set world = 'Today is ' + strftime_now('%B %d, %Y') + '.' %}{% set rest = messages %}{% "
        "endif %}"
        "{{ '<|start_of_role|>system<|end_of_role|>' + world + '<|end_of_text|>\\n' }}{% if tools %}{{ tools | "
        "tojson(indent=4) }}"
        "{% endif %}{% if documents %}{{ raise_exception('documents') }}{% endif %}{% for m in rest %}"
        "{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant' }}{% if controls %}"
        "{{ ' ' + controls | tojson() }}{% endif %}{{ '<|end_of_role|>' }}{% endif %}{% endfor %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), eos="<|end_of_text|>",
    ),
    # Reads switches out of the world, and has the date.
    "smollm3": Family(
        "{% set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}"
        "{% if messages[0].role == 'system' %}{% set world = messages[0].content %}"
        "{% if '/no_think' in world %}{% set mode = '/no_think' %}{% endif %}"
        "{% set world = world.replace('/no_think', '').replace('/think', '').rstrip() %}{% endif %}"
        "{{ '<|im_start|>system\\n' }}{{ '## Metadata\\n\\nToday Date: ' ~ strftime_now('%d %B %Y') ~ "
        "'\\nReasoning Mode: ' "
        "+ mode + '\\n\\n' }}{% if world %}{{ '## Custom Instructions\\n\\n' + world + '\\n\\n' }}{% endif %}{{ "
        "'<|im_end|>\\n' }}"
        "{% for m in messages %}{% set content = m.content if m.content is string else '' %}{% if m.role == 'user' %}"
        "{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}{% elif m.role == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}{% endgeneration %}{% endif "
        "%}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if mode == '/no_think' %}"
        "{{ '<think>\\n\\n</think>\\n' }}{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<think>", "</think>"), eos="<|im_end|>",
    ),
    # Harmony: the world is a developer's message behind a system message of the template's own; channels.
    "gpt-oss": Family(
        "{% if messages[0].role in ['developer', 'system'] %}{% set world = messages[0].content %}"
        "{% set rest = messages[1:] %}{% else %}{% set world = '' %}{% set rest = messages %}{% endif %}"
        "{{ '<|start|>system<|message|>The date: ' + strftime_now('%Y-%m-%d') + '\\nReasoning: low<|end|>' }}"
        "{% if world or tools %}{{ '<|start|>developer<|message|># Instructions\\n\\n' + world + "
        "'\\n\\n<|end|>' }}{% endif %}"
        "{% for m in rest %}{% if m.role == 'assistant' %}{% if loop.last and not add_generation_prompt %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}{% else %}"
        "{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>", "<|call|>"), eos="<|return|>",
    ),
    # Contents are lists and nothing else.
    "lists": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% for part in m.content %}{% if part.type "
        "== 'text' %}"
        "{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>",
    ),
    # The same, and it knows no system message.
    "lists without a system message": Family(
        _TEXT_OF + "{% for m in messages %}{% if m.role == 'system' or m.content is string %}{{ "
        "raise_exception('no') }}"
        "{% endif %}{{ '<|' + m.role + '|>' + text_of(m.content) + '<|end|>' }}{% endfor %}<|assistant|>",
        ("<|user|>", "<|assistant|>", "<|end|>"), system=False, eos="<|end|>",
    ),
    # Without markers of its own: an answer ends with the token that ends a text.
    "vicuna": Family(
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% set rest = "
        "messages[1:] %}{% else %}"
        "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m['role'] == 'user' %}{{ 'USER: ' + "
        "m['content'] + '\\n' }}"
        "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ("<s>", "</s>"), bos="<s>", eos="</s>",
    ),
    # Two markers open a text; the next message's marker ends an answer.
    "glm4": Family(
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n<think></think>' if not enable_thinking else "
        "'<|assistant|>\\n' }}{% endif %}",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>"), eos="<|user|>",
    ),
}  # fmt: skip
