"""One module for each rival: what its documentation tells one to write. Nothing here imports Darkroom.

Those with a queue have `enqueue(task_id, steps)` and `ended(task_id, seconds)`, for front.py, and what their
worker runs. Those that serve a model answer POST /generate once it is done. All run work.py.
"""
