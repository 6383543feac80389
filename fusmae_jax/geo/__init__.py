"""GeoTIFFs, read in one way by whatever reads them: what a file says, where it lies, what its numbers mean.

What is wrong with a file is raised as `UnusableError`; whether that ends a command, leaves out a record or
becomes a finding is for the caller to say.
"""

import shlex


class UnusableError(Exception):
    """A raster that cannot be used: which field of it, what was found there, and what to do."""

    def __init__(self, field: str, found: str, advice: str):
        super().__init__(f'{field}: {found}; {advice}')
        self.field, self.found, self.advice = field, found, advice

    def advice_for(self, file: object) -> str:
        """What to do, with the name of the file in the commands."""
        return self.advice.replace('IN.tif', shlex.quote(str(file)))
