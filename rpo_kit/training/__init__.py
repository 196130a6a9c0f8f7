"""How the reflection module is trained (Figure 2): synthesis of trajectories, SFT, and RL under a curriculum.

Stages 2 to 4, with their teachers, filters, rewards and diagnostics. Evaluating the result belongs to `study`.
"""
