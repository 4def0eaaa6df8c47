"""python app.py: the web page, as `digits serve`."""

import sys

from digit_detector.serve import main

if __name__ == "__main__":
    sys.exit(main())
