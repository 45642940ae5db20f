"""Chat templates as families publish them, written anew in their structure, and a tokenizer.

Gemma: the system role refused, turns in order, contents trimmed. ChatML as in Qwen 2.5 and SmolLM
2: a system turn of its own where there is none. Llama 3: the start token, headers, a date. Mistral:
the system message before the last question, and no header of the assistant.
"""

import json

import tokenizers

GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""

CHATML = """
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}{% generation %}{{ message.content }}{% endgeneration %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- tools | tojson }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

LLAMA3 = """
{%- set ns = namespace(system='', first=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set date = strftime_now('%Y') if strftime_now is defined else '2024' %}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Today is in ' + date + '.\n\n' + ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not message['content'] %}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MISTRAL = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST]' + system_message + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user, system and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {"gemma": GEMMA, "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}
# The tokens that begin and end a text, and the piece that ends an answer.
TOKENS = {
    "gemma": ("<bos>", "<eos>", "<end_of_turn>"),
    "chatml": (None, "<|endoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>", "</s>"),
}
_PIECES = {
    "gemma": ["<start_of_turn>"],
    "chatml": ["<|im_start|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>"],
    "mistral": ["[INST]", "[/INST]"],
}


def write_tokenizer(folder, name, template=None):
    """Bytes with the pieces of a template's family; returns the folder."""
    start, end, turn = TOKENS[name]
    special = [t for t in dict.fromkeys((end, start, turn, *_PIECES[name])) if t is not None]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*special, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": start, "eos_token": end, "pad_token": end}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
