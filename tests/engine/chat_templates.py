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
