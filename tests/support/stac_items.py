"""Validation of STAC items without a network: the core by pystac, extensions by the rules of our fields."""

NUMBERS = {'type': 'array', 'items': {'type': 'number'}}
TYPES = ['uint8', 'uint16', 'int8', 'int16', 'float16', 'float32', 'float64']
TENSOR = {
    'type': 'object',
    'required': ['shape', 'dim_order', 'data_type'],
    'properties': {
        'shape': {'type': 'array', 'items': {'type': 'integer', 'minimum': -1}, 'minItems': 1},
        'dim_order': {'type': 'array', 'items': {'type': 'string'}, 'minItems': 1},
        'data_type': {'enum': TYPES},
    },
}
# Extension, as its address names it -> the fields of a set of properties, or of an asset. Projection 2.0.0,
# raster 2.0.0, processing 1.2.0, machine learning model 1.5.2.
FIELDS = {
    'projection': {
        'proj:code': {'type': ['string', 'null'], 'pattern': '^[A-Z0-9]+:[0-9]+$'},
        'proj:bbox': NUMBERS | {'minItems': 4, 'maxItems': 4},
        'proj:shape': {'type': 'array', 'items': {'type': 'integer'}, 'minItems': 2, 'maxItems': 2},
        'proj:transform': NUMBERS | {'minItems': 6, 'maxItems': 9},
    },
    'raster': {
        'raster:sampling': {'enum': ['area', 'point']},
        'raster:scale': {'type': 'number'},
        'raster:offset': {'type': 'number'},
        'bands': {
            'type': 'array',
            'items': {
                'properties': {'raster:scale': {'type': 'number'}, 'raster:offset': {'type': 'number'}}
            },
        },
    },
    'processing': {
        'processing:software': {'type': 'object', 'additionalProperties': {'type': 'string'}},
        'processing:level': {'type': 'string'},
    },
    'mlm': {
        'mlm:name': {'type': 'string', 'minLength': 1},
        'mlm:architecture': {'type': 'string', 'minLength': 1},
        'mlm:framework': {'type': 'string'},
        'mlm:tasks': {'type': 'array', 'items': {'type': 'string'}, 'minItems': 1},
        'mlm:input': {
            'type': 'array',
            'minItems': 1,
            'items': {
                'required': ['name', 'bands', 'input'],
                'properties': {'bands': {'type': 'array'}, 'input': TENSOR},
            },
        },
        'mlm:output': {
            'type': 'array',
            'minItems': 1,
            'items': {'required': ['name', 'tasks', 'result'], 'properties': {'result': TENSOR}},
        },
    },
}
REQUIRED = {'mlm': ['mlm:name', 'mlm:architecture', 'mlm:tasks', 'mlm:input', 'mlm:output']}


def _extension(address):
    """The name in the address of a schema, such as .../mlm/v1.5.2/schema.json."""
    return address.split('/')[-3]


def problems(item):
    """What is wrong with an item by the schema of the core, and by what its extensions say."""
    import jsonschema
    from pystac.errors import STACValidationError
    from pystac.validation import validate_dict

    problems = []
    try:
        validate_dict({**item, 'stac_extensions': []})
    except STACValidationError as error:
        problems.append(str(error))
    for name in validated(item):
        for place in (item['properties'], *item['assets'].values()):
            needed = REQUIRED.get(name, []) if place is item['properties'] else []
            schema = {'type': 'object', 'properties': FIELDS[name], 'required': needed}
            errors = jsonschema.Draft7Validator(schema).iter_errors(place)
            problems += [f'{name}: {error.json_path} {error.message}' for error in errors]
    return problems


def validated(item):
    """The extensions of an item whose fields are known here."""
    return sorted({_extension(address) for address in item['stac_extensions']} & FIELDS.keys())
