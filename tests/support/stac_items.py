"""Validation of STAC items without a network: the core by pystac, extensions by schemas that lie here."""

import json
from pathlib import Path

SCHEMAS = Path(__file__).parent / 'stac_schemas'
# Schemas that those here refer to, of things that our items do not have.
FOREIGN = {
    'https://proj.org/schemas/v0.7/projjson.schema.json': {},
    'https://geojson.org/schema/Geometry.json': {},
    'https://stac-extensions.github.io/processing/v1.1.0/schema.json': {
        'definitions': {'fields': {'properties': {'processing:expression': {}}}}
    },
    'https://stac-extensions.github.io/classification/v1.1.0/schema.json': {
        'definitions': {'fields': {'properties': {'classification:classes': {}}}}
    },
}


def problems(item):
    """What is wrong with an item by the schemas of the core and of the extensions that lie here."""
    import jsonschema
    import referencing
    from pystac.errors import STACValidationError
    from pystac.validation import validate_dict

    found = []
    try:
        validate_dict({**item, 'stac_extensions': []})
    except STACValidationError as error:
        found.append(str(error))
    schemas = {s['$id'].rstrip('#'): s for s in (json.loads(f.read_text()) for f in SCHEMAS.glob('*.json'))}
    draft = referencing.jsonschema.DRAFT7
    registry = referencing.Registry().with_resources(
        (address, draft.create_resource(schema)) for address, schema in (FOREIGN | schemas).items()
    )
    for address in item['stac_extensions']:
        if address in schemas:
            validator = jsonschema.Draft7Validator(schemas[address], registry=registry)
            found += [f'{address}: {error.message}' for error in validator.iter_errors(item)]
    return found


def validated(item):
    """How many of the extensions of an item have their schema here."""
    here = {json.loads(file.read_text())['$id'].rstrip('#') for file in SCHEMAS.glob('*.json')}
    return len(here & {*item['stac_extensions']})
