"""A process that knows `transformers` alone: prints, as a line of JSON, what it makes of an exported folder.

reader.py FOLDER IDS PROMPT TOKENS: the logits of `IDS` (JSON), and the greedy text of `PROMPT` and `TOKENS` more tokens.
"""

import json
import sys

import torch
import transformers

folder, ids, prompt, more = sys.argv[1], *map(json.loads, sys.argv[2:])
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
prompt = torch.tensor([prompt])
with torch.no_grad():
    logits = model(torch.tensor(ids)).logits
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=more)
print(json.dumps({"logits": logits.tolist(), "text": tokenizer.decode(written[0], skip_special_tokens=True)}))
