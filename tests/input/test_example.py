"""Records read where their bytes lie are those that protobuf reads, in whatever spelling they have."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from fusmae_jax.input.contract import Group
from fusmae_jax.input.example import Example, Image

GROUPS = {
    's1': Group('s1', ('VV', 'VH'), (9, 7), 'float32', 'dB'),
    's2_10m': Group('s2', ('B02',), (40, 40), 'uint16', 'DN'),
    'tiny': Group('s2', ('B01',), (1, 1), 'uint8', 'DN'),
}
NUMBERS = (0, 1, -1, 127, 128, 300, 2**62, -(2**63))


def message(seed=0):
    """A record of images of several lengths, texts, whole numbers and decimals."""
    rng = np.random.default_rng(seed)
    example = tf_example_pb2.Example()
    features = example.features
    images = {}
    for name, group in GROUPS.items():
        images[name] = rng.integers(1, 200, (*group.size, len(group.bands))).astype(group.dtype)
        features.feature[name].bytes_list.value.append(images[name].tobytes())
    for i, number in enumerate(NUMBERS):
        features.feature[f'number{i}'].int64_list.value.append(number)
    features.feature['name'].bytes_list.value.append(b'x' * int(rng.integers(0, 300)))
    features.feature['share'].float_list.value.extend([0.5, 1.5])
    features.feature['nothing'].SetInParent()
    features.feature['no_number'].int64_list.SetInParent()
    return example, images


def check(data, images, name):
    example = Example(data)
    for field, image in images.items():
        read = example.image(Image(field, GROUPS[field]))
        assert read.dtype == image.dtype
        np.testing.assert_array_equal(read, image)
    assert [int(example.label(f'number{i}')) for i in range(len(NUMBERS))] == list(NUMBERS)
    assert example.text('name') == example.label('name').item() == name
    assert example.label('nothing').item() == example.label('no_number').item() == b''
    assert 'share' in example and 'shares' not in example


@pytest.mark.parametrize('seed', range(8))
def test_a_record_reads_as_it_was_written(seed):
    written, images = message(seed)
    name = written.features.feature['name'].bytes_list.value[0]
    check(written.SerializeToString(deterministic=True), images, name)


def spelled_otherwise(data):
    """The same message in two parts, with an unknown field behind: what protobuf joins and skips."""
    extra = tf_example_pb2.Example()
    extra.features.feature['number0'].int64_list.value.append(0)
    return data + extra.SerializeToString() + b'\x18\x05'


def test_another_spelling_of_a_record_is_read_too():
    written, images = message()
    name = written.features.feature['name'].bytes_list.value[0]
    check(spelled_otherwise(written.SerializeToString()), images, name)


def test_what_is_no_record_is_an_error():
    data = message()[0].SerializeToString()
    for broken in (data[:-1], data[1:], b'\x0a', b'no record', data + b'\x00'):
        with pytest.raises((ValueError, IndexError)):
            Example(broken)


def test_a_feature_of_another_kind_is_an_error():
    example = Example(message()[0].SerializeToString())
    other = Group('s1', ('VV',), (9, 7), 'float32', 'dB')
    for name, group in (('s1', other), ('share', other), ('number1', other), ('name', other)):
        with pytest.raises((ValueError, IndexError)):
            example.image(Image(name, group))
    with pytest.raises(KeyError):
        example.image(Image('s3', other))
    with pytest.raises(ValueError, match='byte'):
        example.text('share')
