"""The method at inference time (Figure 1): the base model's generic answer, and how it is rewritten for a user.

Read `base`, `reflection`, `trajectory`, `personalizer` in this order; `prepare` is stage 1, `failures` keeps track of
what a model did not answer, and `prompts/` holds all prompts as text files. How a model is loaded belongs to `models`,
how it is trained to `training`.
"""
