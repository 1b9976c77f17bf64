"""Why a frozen tensor changed: watch a step, or repeat it on copies with one thing changed at a time."""
