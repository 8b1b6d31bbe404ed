"""``python -m gpt1`` is ``gpt1``."""

from gpt1.commands.cli import main
from gpt1.runtime.stopping import end_process

end_process(main())
