"""The times of two dates, where files say them: an earlier image must not be the later one."""

import datetime
import re
from collections.abc import Mapping

from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import option_name
from fusmae_jax.embed.stac import TAGS
from fusmae_jax.errors import InputError

# As products of both Sentinels have it in their names, the acquisition first.
_IN_NAME = re.compile(r'20\d{6}T\d{6}')


def check_order(late: Mapping[str, Raster], early: Mapping[str, Raster]) -> None:
    """Raises InputError where a file of before says a later time than the other file of its sensor."""
    for field, raster in late.items():
        if field not in early:
            continue
        times = acquired(raster), acquired(early[field])
        if times[0] and times[1] and times[1] > times[0]:
            late_name, early_name = (option_name(raster.modality, before) for before in (False, True))
            raise InputError(
                f'{early_name}={early[field].file} is of {times[1]:%Y-%m-%d %H:%M}, and '
                f'{late_name}={raster.file} of {times[0]:%Y-%m-%d %H:%M}: exchange the two'
            )


def acquired(raster: Raster) -> datetime.datetime | None:
    """When an image was taken: by its tags, else by its name or that of its product; None: not said."""
    tags = raster.tags()
    for tag in TAGS:
        try:
            time = datetime.datetime.fromisoformat(tags.get(tag, '').strip())
        except ValueError:
            continue
        return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    product = (part.name for part in raster.file.parents if part.name.endswith('.SAFE'))
    for name in (raster.file.name, *product):
        if match := _IN_NAME.search(name):
            try:
                time = datetime.datetime.strptime(match[0], '%Y%m%dT%H%M%S')
                return time.replace(tzinfo=datetime.UTC)
            except ValueError:
                continue
    return None
