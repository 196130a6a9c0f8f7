"""The method at inference time (Figure 1): what the base model is asked, and how its answer is rewritten for a user.

Read `base`, `reflection`, `trajectory`, `personalizer` in this order; `reading` and `labels` find the answer in what
the base model wrote; `prepare` is stage 1. The texts that the models
are sent are in `prompts/`. How a model is loaded or asked belongs to `models`, how it is trained to `training`.
"""
