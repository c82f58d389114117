"""Training on preferences and on rewards, by TRL's trainers (von Werra et al. 2020) over our encoding.

`pairs` makes ids of a prompt with a better and a worse answer, `prompts` of prompts alone; `dpo`, `cpo` and `grpo` are
TRL's trainers in the frame that every stage has: the recipe's schedule and data order, our checkpoints, our live line.
"""
