"""Chat templates as code of strangers: a sandbox, what is looked for in them, a process for them.

`common/prompt/template.py` renders with it. Kept apart from `common/prompt`, so that the process
that renders (`worker`) loads neither tokenizers nor anything else that it does not need.
"""
