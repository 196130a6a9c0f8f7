"""The results: evaluation, baselines, statistics, ablations, figures, and the displays of the notebooks.

Stages 5 to 7. Nothing here changes a model except through the stages of `training`.
"""
