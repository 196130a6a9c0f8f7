"""How the reflection module is trained (Figure 2): synthesis of trajectories, SFT, and RL under a curriculum.

Here live stages 2 to 4 with their teachers, filters, rewards and diagnostics. What came out of it is for `study`.
"""
