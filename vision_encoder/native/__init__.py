"""What torch does slowly on the CPU, in C, built by gcc when first wanted: attention of many positions in bfloat16."""

from vision_encoder.native.attention import attend_many, lacks_amx
from vision_encoder.native.build import PLAIN, is_plain, load

__all__ = ["PLAIN", "attend_many", "is_plain", "lacks_amx", "load"]
