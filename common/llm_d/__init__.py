"""llm-d's configuration, accepted: its file, its headers, its list of endpoints. Pure.

docs/LLM_D.md says what becomes of what.
"""

from kvatlas.common.llm_d.endpoints_file import entries_of
from kvatlas.common.llm_d.merge import merged
from kvatlas.common.llm_d.translate import Translation, translate

__all__ = ["Translation", "entries_of", "merged", "translate"]
