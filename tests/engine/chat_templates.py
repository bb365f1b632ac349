"""Chat templates in the manner of those that models come with."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
TRIMMING = (
    "{% for message in messages %}{% set text = '<|im_start|>' + message['role'] + '\n\n' "
    "+ message['content'] | trim + '<|im_end|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}"
    "{% endif %}{{ text }}{% endfor %}{{ '<|im_start|>assistant\n\n' }}"
)
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant!') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[Q] ' + message['content'] + ' [/Q]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
IGNORING_SYSTEM = (
    "{%- for message in messages if message.role != 'system' %}"
    "{{- '<|im_start|>' ~ message.role ~ ': ' ~ message.content ~ '<|im_end|>' }}{%- endfor %}"
)
THINKING = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{{- '<|im_start|>assistant\n' }}"
)
SHOUTING = (
    "{% for message in messages %}<|im_start|>{{ message.content | upper }}<|im_end|>{% endfor %}"
    "{{ strftime_now('') }}{% generation %}{% endgeneration %}"
)
WHISPERING = "{% for message in messages %}<|im_start|>{{ message.content | lower }}<|im_end|>{% endfor %}"
FORMING = (
    "{% for message in messages %}<|im_start|>{{ message.content | replace('#', '') }}<|im_end|>{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set said = messages[1:] %}"
    "{% set told = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set said, told = messages, '' %}{% endif %}"
    "{% for message in said %}{% set text = (told if loop.first else '') + message.content %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""Meta's own rules."""
YI = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for message in messages if message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
"""The system prompt stands bare before ChatML."""
PHI_4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}{% endfor %}"
    "{{ '<|im_start|>assistant<|im_sep|>' }}"
)
PHI_4_MINI = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
VIGOGNE = LLAMA_2.replace("messages, ''", "messages, '<<SYS>>\\nVous êtes Vigogne.\\n<</SYS>>\\n\\n'")
"""Meta's rules with a system prompt of its own."""
QWEN_2_5 = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if tools %}{{- raise_exception('no tools here') }}{%- endif %}{{- '<|im_start|>assistant\\n' }}"
)
QWEN_3 = (
    "{%- for message in messages %}{%- set ns = namespace(text=message.content) %}"
    "{%- if message.role == 'assistant' and '</think>' in ns.text %}"
    "{%- set ns.text = ns.text.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + ns.text + '<|im_end|>\\n' }}{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}{%- if messages[0].role == 'system' -%}{%- set told = messages[0].content + '\n\n' -%}"
    "{%- set said = messages[1:] -%}{%- else -%}{%- set told, said = '', messages -%}{%- endif -%}"
    "{%- for message in said -%}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ (told if loop.first else '') + message.content | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{{ '<start_of_turn>model\n' }}"
)
GRANITE = (
    "{%- for message in messages %}"
    "{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content "
    "+ '<|end_of_text|>\n' }}{%- endfor %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}"
)
MISTRAL_SMALL = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}"
    "{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL_NEMO = (
    "{%- if messages[0].role == 'system' %}{%- set told, said = messages[0].content, messages[1:] %}"
    "{%- else %}{%- set told, said = '', messages %}{%- endif %}{{- bos_token }}{%- for message in said %}"
    "{%- if message.role == 'user' %}{{- '[INST]' + (told + '\\n\\n' if told and loop.last else '') "
    "+ message.content + '[/INST]' }}"
    "{%- else %}{% generation %}{{- message.content + eos_token }}{% endgeneration %}"
    "{%- endif %}{%- endfor %}"
)
"""The system prompt stands before the last question."""
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ '<｜User｜>' + message.content }}"
    "{% else %}{{ '<｜Assistant｜>' + message.content + eos_token }}{% endif %}{% endfor %}"
    "{{ '<｜Assistant｜>' }}"
)
OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}"
    "{% if message.role == 'assistant' and not loop.last %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' }}"
)
SMOLLM_3 = (
    "{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}"
    "{%- set mode = '/think' if enable_thinking else '/no_think' %}{%- set told = 'You are a model.' %}"
    "{%- if messages[0].role == 'system' %}{%- set told = messages[0].content %}"
    "{%- if '/no_think' in told %}{%- set mode = '/no_think' %}"
    "{%- elif '/think' in told %}{%- set mode = '/think' %}{%- endif %}"
    "{%- set told = told.replace('/no_think', '').replace('/think', '').rstrip() %}{%- endif %}"
    "{{- '<|im_start|>system\\nReasoning Mode: ' + mode + '\\n\\n' + told + '<|im_end|>\\n' }}"
    "{%- set begun = '' if mode == '/think' else '<think>\\n\\n</think>\\n' %}"
    "{%- for message in messages if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + (begun if message.role == 'assistant' else '') "
    "+ message.content + '<|im_end|>\\n' }}{%- endfor %}{{- '<|im_start|>assistant\\n' + begun }}"
)
"""Its mode stands in the system prompt, and what the system prompt says of it counts first."""
GRANITE_3 = (
    "{%- if messages[0].role == 'system' %}{%- set told, said = messages[0].content, messages[1:] %}"
    "{%- else %}{%- set told, said = 'You are Granite.', messages %}{%- if thinking %}"
    "{%- set told = told + ' Write your thoughts between <think></think>.' %}{%- endif %}{%- endif %}"
    "{{- '<|start_of_role|>system<|end_of_role|>' + told + '<|end_of_text|>\\n' }}"
    "{%- for message in said %}{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' "
    "+ message.content + '<|end_of_text|>\\n' }}{%- endfor %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}"
)
"""It thinks only where it is told to, and only without a system prompt."""
DEEPSEEK_3 = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<｜User｜>' + message.content }}{%- elif message.role == 'system' %}{{- message.content }}"
    "{%- else %}{{- '<｜Assistant｜></think>' + message.content.split('</think>', 1)[-1] + eos_token }}"
    "{%- endif %}{%- endfor %}{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}"
)
"""It opens or ends the block itself."""
MINICPM_5 = QWEN_3.replace(
    "{%- endif %}", "{%- elif enable_thinking is true %}{{- '<think>\\n' }}{%- endif %}"
).replace("lstrip('\\n') %}{%- elif enable_thinking is true %}{{- '<think>\\n' }}", "lstrip('\\n') %}")
"""It leaves the choice to the model where nobody makes it."""
