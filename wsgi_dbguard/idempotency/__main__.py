"""``python -m wsgi_dbguard.idempotency postgresql|mariadb|mysql [TABLE]`` prints the statements that make the table."""

import sys

from .table import TABLE, ddl

if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    try:
        print(ddl(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else TABLE))
    except ValueError as error:
        sys.exit(f"{error}\n\n{__doc__}")
