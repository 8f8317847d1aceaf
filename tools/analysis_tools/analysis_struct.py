"""The older name of tools/prune_and_retrain.py."""

import os
import runpy

TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

if __name__ == '__main__':
    runpy.run_path(
        os.path.join(TOOLS, 'prune_and_retrain.py'), run_name='__main__'
    )
