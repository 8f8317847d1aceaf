"""Any Hugging Face causal language model, from its folder or hub name.

python tools/prune_and_retrain.py projects/configs/llm/causal_lm.py MODEL
"""

_base_ = ['../_base_/causal_lm.py']
