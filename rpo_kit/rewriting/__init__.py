"""The method at inference time (Figure 1): what the base model is asked, and how its answer is rewritten for a user.

Here live the prompts, the trajectory grammar, the reflection module, `prepare` (stage 1) and the personalizer. How a
model is loaded or asked belongs to `models`, how it is trained to `training`.
"""
