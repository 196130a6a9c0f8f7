"""The benchmark: tasks, data, personas, retrieval, metrics, and where LaMP's own files leak answers.

No model is loaded here and nothing is trained; a sentence encoder for dense retrieval is the one exception.
"""
