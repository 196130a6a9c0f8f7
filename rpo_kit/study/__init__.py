"""What came out: evaluation, baselines, statistics, ablations, figures, and what the notebooks show.

Stages 5 and 6. Nothing here changes a model except through the stages of `training`.
"""
