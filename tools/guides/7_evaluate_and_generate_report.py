"""Step 7 of the guide: all models in one table and one picture.

    python tools/guides/7_evaluate_and_generate_report.py

Writes final_report.json, final_report.png and report.html into models/.
"""

import sys

import distilbert_words as words

sys.path.insert(0, str(words.ROOT / 'tools'))

from report import main  # noqa: E402

if __name__ == '__main__':
    main(['--final', *(sys.argv[1:] or ['./models'])])
