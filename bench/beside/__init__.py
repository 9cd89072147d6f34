"""Darkroom beside what else there is for jobs and for models (`python -m bench.beside`).

`rivals/` is what each rival is given to run, in an environment of its own (`script/tools beside`). The
rest runs in Darkroom's.
"""
