"""LaMP for other harnesses: the tasks as an inspect-ai package and as lm-eval tasks, scored like `score`.

`questions` holds what both share. `inspect_tasks` imports inspect-ai, and nothing in the kit imports `inspect_tasks`;
`lm_eval_tasks/` is read by lm-eval. The packages are in the extra `harness`.
"""
