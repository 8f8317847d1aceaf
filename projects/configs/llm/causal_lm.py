"""Any Hugging Face causal language model, from its folder or hub name.

Single weights by Wanda, block by block; heads and neurons as in any family.

MODEL is the folder; its tokenizer and length are taken from there. For 2 of 4
neighbours give --pattern 2:4 in the place of the ratio.

    python tools/prune_and_retrain.py \
        projects/configs/llm/causal_lm.py MODEL \
        --mode unstructured --pruning-ratio 0.5
"""

_base_ = ['../_base_/causal_lm.py']
