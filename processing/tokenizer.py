"""A small WordPiece tokenizer for reports on climate, soil, crops and satellite images, made from this file alone.

The text it learns from is generated here: word lists of the field, their inflections, report and caption sentences.
It is BERT's form of WordPiece (lower case, accents stripped, `##` continuations), so that a BERT or MiniLM tokenizer
can take its place. Pieces are learned by pair merging in Python with ties broken by spelling, because the trainer of
the `tokenizers` library gives another vocabulary at every run; the same call here gives the same tokenizer.
"""

import heapq
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .numbers_agriclip import CANONICAL_UNITS, NUM_TOKEN

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", NUM_TOKEN)

# Every ASCII character, the Latin letters that stay after accents are stripped, and signs found in reports.
_ALPHABET = sorted(
    set(string.digits + string.ascii_lowercase + string.punctuation)
    | {chr(code).lower() for code in (*range(0xA1, 0x100), *range(0x100, 0x180)) if len(chr(code).lower()) == 1}
    | set("αβγδεθκλμπρστφχψωσςşţșțəǎ–—‘’“”„…•·×÷±≈≤≥≠−√∞∆∂∑°′″⁻⁰¹²³⁴⁵⁶⁷⁸⁹€£¥™→←↑↓₀₁₂₃₄₅₆₇₈₉")
)

# Classes of the USDA Cropland Data Layer (public domain).
_CROPLAND = """
corn; cotton; rice; sorghum; soybeans; sunflower; peanuts; tobacco; sweet corn; pop or ornamental corn; mint; barley;
durum wheat; spring wheat; winter wheat; other small grains; double crop winter wheat soybeans; rye; oats; millet;
speltz; canola; flaxseed; safflower; rape seed; mustard; alfalfa; other hay non alfalfa; camelina; buckwheat;
sugarbeets; dry beans; potatoes; other crops; sugarcane; sweet potatoes; miscellaneous vegetables and fruits;
watermelons; onions; cucumbers; chick peas; lentils; peas; tomatoes; caneberries; hops; herbs; clover wildflowers;
sod grass seed; switchgrass; fallow idle cropland; pasture grass; forest; shrubland; barren; cherries; peaches;
apples; grapes; christmas trees; other tree crops; citrus; pecans; almonds; walnuts; pears; clouds no data;
developed; water; wetlands; nonagricultural; undefined; aquaculture; open water; perennial ice snow; developed open
space; developed low intensity; developed medium intensity; developed high intensity; deciduous forest; evergreen
forest; mixed forest; grassland pasture; woody wetlands; herbaceous wetlands; pistachios; triticale; carrots;
asparagus; garlic; cantaloupes; prunes; olives; oranges; honeydew melons; broccoli; avocados; peppers; pomegranates;
nectarines; greens; plums; strawberries; squash; apricots; vetch; double crop winter wheat corn; double crop oats
corn; lettuce; pumpkins; double crop lettuce durum wheat; double crop lettuce cantaloupe; double crop lettuce cotton;
double crop lettuce barley; double crop durum wheat sorghum; double crop barley sorghum; double crop winter wheat
sorghum; double crop barley corn; double crop winter wheat cotton; double crop soybeans cotton; double crop soybeans
oats; double crop corn soybeans; blueberries; cabbage; cauliflower; celery; radishes; turnips; eggplants; gourds;
cranberries; double crop barley soybeans
"""

# EuroSAT, ESA WorldCover, CORINE and NLCD land cover in plain words, and scenes of captioned satellite images.
_LAND_COVER = """
annual crop; forest; herbaceous vegetation; highway; industrial buildings; pasture; permanent crop; residential
buildings; river; sea or lake; tree cover; shrubland; grassland; cropland; built up area; bare or sparse vegetation;
snow and ice; permanent water bodies; herbaceous wetland; mangroves; moss and lichen; continuous urban fabric;
discontinuous urban fabric; road and rail networks; port areas; airports; mineral extraction sites; dump sites;
construction sites; green urban areas; sport and leisure facilities; non irrigated arable land; permanently irrigated
land; rice fields; vineyards; fruit trees and berry plantations; olive groves; complex cultivation patterns; agro
forestry areas; broad leaved forest; coniferous forest; natural grasslands; moors and heathland; sclerophyllous
vegetation; transitional woodland shrub; beaches dunes sands; bare rocks; sparsely vegetated areas; burnt areas;
glaciers and perpetual snow; inland marshes; peat bogs; salt marshes; salines; intertidal flats; water courses;
coastal lagoons; estuaries; center pivot irrigation; circular fields; rectangular fields; strip fields; terraced
fields; contour farming; farmland; orchard; greenhouse; meadow; desert; mountain; bridge; harbor; parking lot;
stadium; school; church; railway station; viaduct; pond; playground; square; resort; baseball field; storage tanks;
dense residential; medium residential; sparse residential; golf course; runway; solar farm; wind farm
"""

_AGRONOMY = """
abandoned acreage acre agriculture agricultural agroecosystem agronomist agronomy amendment anthesis aphid
application area arable available bean biomass blight boot broadcast bushel canopy capacity cash catch chaff climate
clover combine conserve conservation conventional cover crop cropping cropped cultivar cultivate cultivated
cultivation cycle damage date deficit density depth development disease double double-cropped drain drainage drained
drill drilled drought early emergence erosion evapotranspiration fallow farm farmer fertility fertilizer field flood
flowering forage freeze frost full fungicide furrow germinate germination grain graze grazing group grow grower
growing growth hail hardiness harden harvest harvested harvesting hay hazard head heading heat heavy hectare
herbicide hybrid indeterminate inoculate input insect insurance intensive intercrop irrigate irrigated irrigation
killing land late lodging loss lower management manure maturity mature maturing moisture monoculture mulch multiple
nitrogen no-till nodule nutrient organic paddy pasture pest phenology phosphorus planting plant planted plot plow pod
potassium practice precipitation pressure producer production productivity rainfed rain rainfall ratoon relay replant
residue rotation row rust safrinha saline salinity seed seeded seeding seedling shade shallow short silage single
sowing sown spacing spray spring stage stand stalk straw strip stress stubble suitability suitable sulfur summer
susceptible tasseling temperature tillage tilled tillering topsoil tractor transpiration variety vegetative
vernalization vigor volunteer water waterlogging weed wheat wilt wilting windbreak winter winterkill yield zone
soybean soybeans soy soya maize wheat-soybean double-crop double-cropping winterwheat sequential follow following
succeeding
"""

_CLIMATE_SOIL = """
absolute accumulated acid acidic adapt adaptation aerosol albedo alfisol alkaline alluvial altitude andisol annual
anomaly arid aridisol aridity aspect atmosphere atmospheric autumn average base baseline basin bedrock bias
bioclimate bioclimatic calcareous calcium carbon cation chance change chernozem clay climatology cloud cloudy coarse
coast coastal cold coldest compaction concentration conductivity continental convective cooling correction coverage
cumulative daily daylength decade decrease degree delta depression desert dew dioxide diurnal dominant downscaled
driest dry dryness dust elevation emission ensemble entisol equator erosive evaporation event exceed exceedance
exchange exposure extreme fine flooding forcing forecast freezing frequency future gelisol global gravel greenhouse
groundwater hardpan high highest histosol historical horizon hot hottest hour humid humidity humus hydraulic
inceptisol inch increase index infiltration insolation interannual isothermality latitude layer leaching length
limestone loam loamy loess long longitude low lowest maximum mean median mediterranean member millimeter minimum
mollisol monsoon month monthly moderate moderately muck normal observed ocean offset oxisol peak peat percent
percentile period permafrost poorly potential prairie present pressure probability profile projected projection
quality quarter radiation range rate ratio reanalysis recharge reference region regional relative relief return risk
root rooting runoff sand sandy saturated saturation scenario season seasonal seasonality semiarid semi severe shift
shortwave silt silty slope snow snowfall snowpack soil solar spell spodosol spread stable standard deviation station
steep steppe stony storm stormy structure subhumid subsoil subtropical sunshine surface temperate terrace texture
thaw threshold topography tropical trend tundra typical ultisol uncertainty unit upland valley value vapor variable
variability variance vertisol very visibility volcanic volumetric warm warmer warmest warming water watershed weather
week weekly well well-drained somewhat excessively wet wetter wettest wetness wilting wind windy year yearly drier
cooler colder hotter
"""

_REMOTE_SENSING = """
absorption aerial algorithm angle antenna aperture aquatic archive backscatter band bare bin blue brightness built
calibrate camera cell channel chlorophyll class classification classify cloudfree coastal coefficient coherence color
composite correction coverage cropland dark dataset date detection digital dimension distance dry edge elevation
emissivity enhanced entropy evi feature filter flat footprint frame fraction free geometry grass green grid ground
hyperspectral image imagery incidence infrared instrument intensity interferogram landsat layer leaf lidar light map
mask mission model modis moisture month mosaic multispectral nadir near ndvi ndwi noise north observation optical
orbit orthorectified panchromatic patch path pattern pixel pivot plane planet planetscope polarization product
quality radar radiance radiometric raster ratio red reflectance reflective residual resolution roof rough roughness
sample satellite scale scatter scene segmentation sensor sentinel series shadow shape shortwave sigma signal
signature smooth smoothed south spatial spectral spectrum sun swath swir target temporal texture thermal threshold
tile time tower true vegetation vertical view visible wavelength wetland whiskbroom east west northern southern
eastern western central upper edge boundary polygon centroid county state country
"""

_GENERAL = """
a about above according across after again against ago all almost along already also although always among amount an
and another any appear are around as at available away back be became because become been before begin below beside
best better between beyond big both bottom bright broad but by call can cannot case center change clear close come
common compare complete condition contain continue could cover current day days dense depend describe did differ
difference different direction do does done down drop dry due during each earlier early east easy edge effect eight
either else end enough equal especially estimate even evenly event ever every example except expect explain extend
face fall far farther fast few fewer fifth find first five fixed for form found four fourth from front full further
gave general get give given go good gradual great greater group had half happen hard has have he heavy held help her
here high higher him his hold home how however hundred if impact important improve in include including indicate
inside instead interest into is isolated it its itself just keep kind know known large larger largest last later
least left less let level light like likely limit limited line list little local locate located long longer look loss
made main major make many mark may me measure method middle might million miss missing mixed more morning most mostly
mountain move much must my name narrow nearby nearly need neither never new next night nine no none nor north not
note nothing now number object occur of off often old on once one only open opposite or order other others our out
outside over overall own pair part particular past per perhaps period person place plain point poor possible present
previous probable probably problem produce provide put quick quickly quite rapid rare rarely rather reach read ready
real reason recent record reduce regular relate remain remove repeat replace report require result right rise river
road room rose round run said same saw say scattered second section see seen seldom select separate set seven several
shall she show shown side similar since six size slight slightly slow small smaller so some sometimes soon south
space sparse start steady stay still stop strong stronger study such suffer sure take taken tall tell ten tend term
test than that the their them then there these they thick thin thing think third this those though thousand three
through thus to today together too took top total toward town tree true try turn twelve two type under unless
unlikely unknown until up upon upper use used useful usual usually vary various very village visible was way we weak
week well were west what when where whether which while white who whole why wide will with within without word work
world would year yellow yes yet you young zero green brown gray black red orange january february march april may
june july august september october november december jan feb mar apr jun jul aug sep sept oct nov dec monday tuesday
wednesday thursday friday saturday sunday spring summer autumn fall winter ssp126 ssp245 ssp370 ssp585 ssp1 ssp2 ssp3
ssp5 rcp45 rcp85 cmip6 bio awc gdd pet spei spi lai vpd rgb sar vv vh dem dsm
"""

_BIOCLIM = """
annual mean temperature; mean diurnal range; isothermality; temperature seasonality; maximum temperature of the
warmest month; minimum temperature of the coldest month; temperature annual range; mean temperature of the wettest
quarter; mean temperature of the driest quarter; mean temperature of the warmest quarter; mean temperature of the
coldest quarter; annual precipitation; precipitation of the wettest month; precipitation of the driest month;
precipitation seasonality; precipitation of the wettest quarter; precipitation of the driest quarter; precipitation
of the warmest quarter; precipitation of the coldest quarter; growing degree days from sowing to the first autumn
freeze; last spring freeze day; first autumn freeze day; frost free days; vernalisation days; hot days in august;
available water capacity; soil organic carbon; clay content; sand content; silt content; soil ph; cation exchange
capacity; bulk density; slope; elevation; woody cover; crop cover; irrigated share; day length at sowing; climatic
water balance; vapour pressure deficit; solar radiation; wind speed; length of the growing season
"""

_CAPTIONS = (
    "a satellite image of {}",
    "an aerial photograph of {}",
    "a false color image of {}",
    "a field of {} in the growing season",
    "this tile is mostly {}",
    "{} next to a road",
)
_REPORTS = (
    "{} [NUM] {unit}.",
    "{} is [NUM] {unit}, above normal.",
    "{} rises to [NUM] {unit} under the scenario, [NUM] {unit} more than today.",
    "the {} ranges from [NUM] to [NUM] {unit}.",
)


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(";") if phrase.strip()]


def _inflections(word: str) -> list[str]:
    """Regular English forms of a word; some are not words, but their endings are."""
    if len(word) < 3 or not word.isalpha():
        return [word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return [word, word[:-1] + "ies", word[:-1] + "ied", word + "ing"]
    if word.endswith("e"):
        return [word, word + "s", word + "d", word[:-1] + "ing"]
    if word.endswith(("s", "x", "ch", "sh", "ing", "ed", "ly", "est")):
        return [word]
    return [word, word + "s", word + "ed", word + "ing"]


def corpus() -> Iterator[str]:
    """Generate the text the tokenizer learns from: word lists, inflections, captions and report sentences."""
    classes = _phrases(_CROPLAND) + _phrases(_LAND_COVER)
    variables = _phrases(_BIOCLIM)
    for weight, words in ((8, _AGRONOMY), (8, _CLIMATE_SOIL), (6, _REMOTE_SENSING), (12, _GENERAL)):
        for word in words.split():
            yield from [word] * weight
            yield from _inflections(word)
    for name in classes:
        for caption in _CAPTIONS:
            yield caption.replace("{}", name)
    for i, name in enumerate(variables):
        for j, report in enumerate(_REPORTS):
            yield report.replace("{}", name).replace("{unit}", CANONICAL_UNITS[(i + j) % len(CANONICAL_UNITS)])
    for unit in CANONICAL_UNITS:  # units stand in every sentence of every report
        yield from [unit] * 40


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        plain = normalizer.normalize_str(re.sub(re.escape(NUM_TOKEN), " ", text))
        counts.update(word for word, _ in splitter.pre_tokenize_str(plain))
    return counts


def _learn_pieces(counts: Counter[str], size: int) -> list[str]:
    """Merge the most frequent pair of pieces again and again until `size` pieces are there or every word is whole."""
    pieces = [*_ALPHABET, *(f"##{letter}" for letter in _ALPHABET if letter not in string.punctuation)]
    known = set(pieces)
    words = sorted(word for word in counts if len(word) > 1 and set(word) <= set(_ALPHABET))
    split = [[word[0], *(f"##{letter}" for letter in word[1:])] for word in words]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for i, parts in enumerate(split):
        for pair in zip(parts, parts[1:], strict=False):
            pairs[pair] += counts[words[i]]
            where[pair].add(i)
    # Most frequent first, ties by spelling: the same vocabulary every time. Entries whose count has changed since they
    # were pushed are passed over.
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    while len(pieces) < size and queue:
        count, best = heapq.heappop(queue)
        if pairs[best] != -count or count == 0:
            continue
        merged = best[0] + best[1].removeprefix("##")
        if merged not in known:
            known.add(merged)
            pieces.append(merged)
        changed: set[tuple[str, str]] = set()
        for i in sorted(where[best]):
            joined: list[str] = []
            for part in split[i]:
                if joined and (joined[-1], part) == best:
                    joined[-1] = merged
                else:
                    joined.append(part)
            for sign, parts in ((-1, split[i]), (1, joined)):
                for pair in zip(parts, parts[1:], strict=False):
                    pairs[pair] += sign * counts[words[i]]
                    changed.add(pair)
                    if sign > 0:
                        where[pair].add(i)
                    elif pair != best:
                        where[pair].discard(i)
            split[i] = joined
        del where[best]
        for pair in changed:
            if pairs[pair] > 0:
                heapq.heappush(queue, (-pairs[pair], pair))
    return pieces


def build_tokenizer(vocab_size: int = 8192, extra_texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Build the tokenizer; the same arguments give the same tokenizer.

    Args:
        vocab_size: Largest number of tokens. The built-in text yields fewer than the default; what it yields is taken.
        extra_texts: Further texts to learn from, for instance the user's own reports and class names.

    Returns:
        A fast tokenizer with [PAD], [UNK], [CLS], [SEP], [MASK] and [NUM], lower case, 512 tokens at most. Every word
        of ASCII or Latin letters can be spelled, so none of them becomes [UNK].

    Raises:
        ValueError: If `vocab_size` has no room for the alphabet.
    """
    counts = _word_counts(corpus())
    for word, count in _word_counts(extra_texts).items():
        counts[word] += 4 * count
    least = len(SPECIAL_TOKENS) + 2 * len(_ALPHABET)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} has no room for the alphabet; give at least {least}.")
    pieces = _learn_pieces(counts, vocab_size - len(SPECIAL_TOKENS))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *pieces])}
    # A word may be as long as a line: a run of letters is spelled, not given up.
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        extra_special_tokens=[NUM_TOKEN],
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
