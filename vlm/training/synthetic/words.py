"""The words and numerals that charts are written with, and the rule that holds a fifth of them out.

One rule decides for every word, listed or made up, and for every numeral of two or more digits: those whose checksum
is a multiple of five are held out. A phrase belongs to a split only when all its words do. A dozen words of titles
("by", "of", "rate") and single digits are in both.
"""

import functools
import zlib
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]

COUNTRIES = """Brazil|Peru|Chile|Argentina|Uruguay|Bolivia|Colombia|Ecuador|Mexico|Canada|United States|Cuba|Jamaica|
Panama|Haiti|Guatemala|Honduras|Spain|Portugal|France|Germany|Italy|Austria|Switzerland|Belgium|Netherlands|Denmark|
Sweden|Norway|Finland|Iceland|Ireland|United Kingdom|Poland|Czechia|Slovakia|Hungary|Romania|Bulgaria|Greece|Serbia|
Croatia|Slovenia|Albania|Estonia|Latvia|Lithuania|Ukraine|Russia|Georgia|Armenia|Turkey|Israel|Jordan|Lebanon|Egypt|
Libya|Tunisia|Algeria|Morocco|Nigeria|Ghana|Kenya|Uganda|Rwanda|Tanzania|Ethiopia|Zambia|Angola|Namibia|Botswana|
South Africa|Senegal|Mali|Niger|Chad|Sudan|Saudi Arabia|Qatar|Kuwait|Oman|Iran|Iraq|India|Pakistan|Nepal|Bangladesh|
Sri Lanka|Myanmar|Thailand|Vietnam|Laos|Cambodia|Malaysia|Singapore|Indonesia|Philippines|China|Mongolia|Japan|Taiwan|
South Korea|North Korea|Hong Kong|Australia|New Zealand|Fiji|Samoa|Costa Rica|Puerto Rico|Paraguay|Venezuela|Malta|
Cyprus|Luxembourg|Europe|Africa|Asia|Oceania|North America|Latin America|Middle East|U.S.|UK|World|Other|Gabon|
Belize"""

PLACES = """London|Paris|Berlin|Madrid|Rome|Vienna|Prague|Warsaw|Athens|Oslo|Dublin|Lisbon|Moscow|Cairo|Lagos|Nairobi|
Mumbai|Delhi|Tokyo|Osaka|Seoul|Beijing|Shanghai|Sydney|Melbourne|Toronto|Montreal|Chicago|Boston|Houston|Dallas|
Seattle|Denver|Miami|Atlanta|New York|Los Angeles|San Diego|Philadelphia|Texas|California|Florida|Ohio|Oregon|Nevada|
Utah|Iowa|Kansas|Maine|Georgia|Virginia|Alabama|Alaska|Hawaii|Montana|Idaho|Michigan|Bavaria|Saxony|Hesse|Ontario|
Quebec|Scotland|Wales|Lima|Bogota|Santiago|Manila|Jakarta|Hanoi|Bangkok|Geneva|Zurich|Milan|Turin|Lyon|Nice|Porto|
Midwest|Northeast|South|West|North|East|Central|Urban|Rural|Suburban|Colorado|Arizona|Illinois|Indiana|Kentucky"""

PRODUCTS = """Apples|Bananas|Oranges|Lemons|Grapes|Peaches|Pears|Plums|Cherries|Mangoes|Potatoes|Tomatoes|Onions|
Carrots|Beans|Peas|Lettuce|Corn|Wheat|Rice|Barley|Oats|Sugar|Salt|Honey|Milk|Cheese|Butter|Yogurt|Eggs|Beef|Pork|
Chicken|Lamb|Fish|Shrimp|Salmon|Tuna|Coffee|Tea|Cocoa|Juice|Water|Wine|Beer|Bread|Pasta|Pizza|Cake|Chips|Nuts|Cars|
Trucks|Buses|Trains|Planes|Ships|Bikes|Boats|Phones|Laptops|Tablets|Cameras|Printers|Monitors|Watches|Games|Toys|
Books|Magazines|Newspapers|Music|Movies|Videos|Shoes|Shirts|Jeans|Jackets|Hats|Socks|Dresses|Furniture|Chairs|Tables|
Lamps|Beds|Soap|Shampoo|Perfume|Paper|Wood|Steel|Iron|Copper|Gold|Silver|Zinc|Cement|Glass|Plastic|Rubber|Cotton|Wool|
Silk|Oil|Gas|Coal|Solar|Wind|Hydro|Nuclear|Batteries|Chemicals|Medicines|Vaccines|Flowers|Seeds|Ice cream|Olive oil|
Soft drinks|Frozen food|Pet food|Smart TVs|Hard drives|Electric cars|Mobile apps|Video games|Hardware|Software|
Cloud services"""

SECTORS = """Agriculture|Mining|Energy|Construction|Manufacturing|Retail|Wholesale|Transport|Logistics|Tourism|Hotels|
Restaurants|Media|Telecom|Banking|Insurance|Real estate|Education|Health|Health care|Research|Defense|Justice|Housing|
Culture|Sports|Arts|Science|Law|Finance|Marketing|Sales|Design|Engineering|Support|Legal|Operations|Security|Planning|
Training|Travel|Food|Clothing|Leisure|Utilities|Textiles|Forestry|Fishing|Aviation|Shipping|Pharma|Biotech|Robotics|
Services|Industry|Public sector|Private sector|Households|Government|Military|Roads|Railways|Ports|Airports|Power"""

PEOPLE = """Anna|Ben|Clara|David|Emma|Frank|Grace|Henry|Ivan|Julia|Kevin|Laura|Marco|Nina|Oscar|Paula|Quinn|Rosa|Sam|
Tina|Uma|Victor|Wendy|Xavier|Yara|Zoe|Alice|Bruno|Carlos|Diana|Elena|Felix|Gloria|Hugo|Irene|Jack|Karen|Liam|Maria|
Noah|Olga|Peter|Ruth|Simon|Thomas|Ursula|Walter|Smith|Jones|Garcia|Miller|Brown|Silva|Kim|Nguyen|Patel|Schmidt|Rossi|
Novak|Michael Jordan|Larry Bird|Tony Parker|Paul Young|John Adams|Mary King|Carl Baker|James Hill|Lucy Gray|
Mark Stone"""

GROUPS = """Men|Women|Boys|Girls|Total|All adults|Adults|Children|Students|Teachers|Parents|Workers|Voters|
Republicans|Democrats|Independents|White|Black|Hispanic|Asian|Christian|Catholic|Protestant|Muslim|Jewish|Married|
Single|Divorced|Yes|No|Don't know|Not sure|Always|Often|Sometimes|Rarely|Never|Very good|Good|Fair|Poor|Bad|Agree|
Disagree|Neutral|Favorable|Unfavorable|Approve|Disapprove|Support|Oppose|Too much|Too little|About right|A lot|Some|
Not much|None|Better|Worse|Same|High school|College|College grad|Some college|Postgrad|Low income|High income|
Conservative|Liberal|Moderate|Very important|Not important|Strongly agree|Full time|Part time|Retired|Unemployed|
Daily|Weekly|Monthly|Yearly"""

BRANDS = """Acme|Globex|Initech|Umbra|Vertex|Nimbus|Orion|Apex|Zenith|Polar|Delta|Omega|Alpha|Sigma|Lumen|Nova|Quanta|
Titan|Atlas|Vega|Cobalt|Ember|Falcon|Granite|Harbor|Indigo|Juniper|Kestrel|Lynx|Maple|Nectar|Onyx|Pioneer|Quartz|
Raven|Summit|Tundra|Unity|Velvet|Willow|Yonder|Zephyr|Facebook|Google|Apple|Samsung|Sony|Nokia|Toyota|Honda|Ford|
Nestle|Adidas|Puma|Nike|Shell|Bosch|Siemens|Intel|Dell|Twitter|YouTube|Netflix|Amazon|Walmart|Lidl|Visa|Bayer|Pfizer|
Boeing|Airbus|LinkedIn"""

MEASURES = """revenue|sales|exports|imports|production|consumption|prices|demand|supply|output|spending|investment|
profit|losses|income|costs|growth|usage|stocks|deliveries|shipments|orders|turnover|earnings|debt|budget|wages|taxes|
traffic|capacity|emissions|reserves|waste|recycling|trade|market value|market size|volume|donations|rents|fares|fees|
loans|grants|sponsorship|royalties|net income|gross profit|operating costs"""

COUNTED = """visitors|users|employees|students|patients|households|companies|stores|schools|hospitals|hotels|tourists|
flights|passengers|accidents|crimes|births|deaths|marriages|teachers|doctors|nurses|farmers|workers|members|players|
subscribers|customers|downloads|cases|awards|medals|goals|homes|farms|cows|sheep|species|volunteers|immigrants|voters|
internet users|new houses|jobs|vacancies|patents|museums|libraries|theaters|restaurants|bridges|points|calls|
complaints|robots|clinics"""

RATED = """unemployment rate|inflation rate|literacy rate|birth rate|market share|population growth|average age|
life expectancy|rainfall|temperature|approval rating|internet access|home ownership|poverty rate|voter turnout|
success rate|tax rate|average price|hourly wage|interest rate|infant mortality|energy use|crime rate|response time|
water level|air quality|customer satisfaction|public trust|concern about crime|support for reform|views of leaders|
trust in media|median age|heart rate|exchange rate|average wage|average speed|growth rate|divorce rate|discount rate|
average weight|average height|average rent|average cost|employment rate|savings rate|market price"""

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
WEEKDAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
SOURCES = (
    "Statistics Office|National Bank|World Bank|Census Bureau|Survey Center|Ministry|Eurostat|OECD|Own survey|Institute"
)

YEARS = {"train": (1970, 2032), "held_out": (1920, 1969)}
SHARED_WORDS = frozenset(("by", "of", "in", "to", "the", "a", "number", "rate", "market", "average", "price", "net"))

_LISTS = {
    "country": COUNTRIES,
    "place": PLACES,
    "product": PRODUCTS,
    "sector": SECTORS,
    "person": PEOPLE,
    "group": GROUPS,
    "company": BRANDS,
    "measure": MEASURES,
    "counted": COUNTED,
    "rated": RATED,
    "month": MONTHS,
    "weekday": WEEKDAYS,
    "source": SOURCES,
}
WORD_KINDS = ("country", "place", "product", "sector", "person", "group", "company", "measure", "counted", "rated")
"""Those of `words` that say what a chart is about. In this order everything is drawn: another draws other pictures."""

_ONSETS = "b|c|d|f|g|h|j|k|l|m|n|p|r|s|t|v|w|z|br|ch|cl|cr|dr|fl|fr|gl|gr|pl|pr|qu|sc|sh|sk|sl|sp|st|th|tr|x|y"
_VOWELS = "a|e|i|o|u|a|e|i|o|u|ai|au|ea|ee|ie|oa|oo|ou|y"
_ENDINGS = "b|ck|d|f|g|k|l|ll|m|n|nd|ng|nt|p|r|rd|rk|rs|s|sh|ss|st|t|th|x|z"

_UNWELCOME = "fuc|fuk|shit|cunt|nig|dic|coc|slut|fag|cum|rape|tit|pis|whor|poo|nazi|sex"


def in_split(word: str, split: Split) -> bool:
    """Say whether `word` (letters or digits, any case) may be printed by charts of `split`."""
    word = word.lower()
    if word in SHARED_WORDS or len(word) < 2:
        return True
    return (zlib.crc32(word.encode()) % 5 == 0) == (split == "held_out")


def phrase_in_split(phrase: str, split: Split) -> bool:
    """Say whether all words of `phrase` may be printed by charts of `split`."""
    return all(in_split(word, split) for word in phrase.split())


@functools.cache
def words(kind: str, split: Split) -> tuple[str, ...]:
    """Return the listed phrases of a kind ("country", "product", "measure", …) that belong to `split`."""
    phrases = [" ".join(phrase.split()) for phrase in _LISTS[kind].split("|")]
    return tuple(phrase for phrase in phrases if phrase_in_split(phrase, split))


def months(split: Split) -> list[str]:
    """Return the twelve months for training; held-out charts have no months, which no rule could share out."""
    return MONTHS.split("|") if split == "train" else []


@functools.cache
def _syllables() -> tuple[list[str], ...]:
    return tuple(letters.split("|") for letters in (_ONSETS, _VOWELS, _ENDINGS))


def is_unwelcome(word: str) -> bool:
    """Return whether a word made by chance, in small letters, holds one that nobody wants to read."""
    return any(part in word for part in _UNWELCOME.split("|"))


def pseudo_word(random: Random, split: Split) -> str:
    """Return a capitalised pronounceable word of three to nine letters that is in no list but by accident."""
    onsets, vowels, endings = _syllables()
    while True:
        syllables = [random.choice(onsets) + random.choice(vowels) for _ in range(random.choice((1, 2, 2, 2, 3)))]
        word = "".join(syllables) + (random.choice(endings) if random.random() < 0.6 else "")
        # What is declined begins with this word, and no other answer may.
        if 3 <= len(word) <= 9 and word != "the" and not is_unwelcome(word) and in_split(word, split):
            return word.upper() if random.random() < 0.08 else word.capitalize()


def random_string(random: Random, split: Split) -> str:
    """Return two to six letters and digits without sense, so that no word can be guessed from its beginning."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if random.random() < 0.5 else "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP"
    while True:
        letters = "".join(random.choice(alphabet) for _ in range(random.randint(2, 6)))
        tail = random.choice(("", "", str(random.randint(2, 9)), f"-{random.randint(2, 9)}"))
        if in_split(letters + tail, split):
            return letters + tail
