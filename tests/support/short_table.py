"""The published table of BigEarthNet-MM's pairs, cut to the six that are at hand.

The whole table has 590,326 rows, which take a process seconds to decompress; `test_bigearthnet_splits.py`
holds these six against it.
"""

from fusmae_jax.shipped.data.bigearthnet_mm import lists

ROWS = (
    'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48,S2A_MSIL2A_20170613T101031_87_48,Austria,Summer',
    'S1A_IW_GRDH_1SDV_20170925T043256_35VPK_69_24,S2B_MSIL2A_20170924T93020_69_24,Finland,Fall',
    'S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55,S2A_MSIL2A_20170617T113321_4_55,Ireland,Summer',
    'S1A_IW_GRDH_1SDV_20180204T043253_35VPK_57_38,S2B_MSIL2A_20180204T94161_57_38,Finland,Winter',
    'S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35,S2A_MSIL2A_20171221T112501_56_35,Portugal,Winter',
    'S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85,S2A_MSIL2A_20170617T113321_36_85,Ireland,Summer',
)
whole = lists._table


def install() -> None:
    """From now on the converters of this process know the six pairs alone."""
    lists._table = lambda: '\n'.join(('s1_name,s2_name,country,season', *ROWS, ''))
