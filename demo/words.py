"""The everyday words that the demonstration sentences are made of, by kind.

Every word here is one token of the tokenizer of ``demo-lm``, with and without a space before it.
"""

from __future__ import annotations

from typing import Final

_NAMES = """
Anna Ben Carla David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paul Rosa Sam Tom Uma Victor Wendy
Yara Zoe Adam Alice Amir Bella Boris Bruno Cora Daniel Diana Dora Eli Elena Eric Eva Felix Fiona George Gina Hana
Hugo Ida Igor Ivan Jane Jonas Julia Kim Lara Laura Lena Liam Lily Linda Lucas Lucy Luis Mara Mark Martin Max Mia Milo
Mona Nadia Nora Olga Oliver Omar Otto Pablo Peter Petra Priya Rafael Ravi Rita Robert Ruth Sara Simon Sofia Stefan
Tara Theo Tina Vera Viktor Walter Yusuf Mary John James Sarah Mike Bob Ali Noah Olivia Ahmed Chen Wei Fatima Kofi
"""

_CITIES = """
Oslo Rome Paris Berlin Madrid Lisbon Vienna Prague Athens Dublin London Warsaw Cairo Tokyo Kyoto Seoul Delhi Lima Quito
Bogota Havana Boston Denver Dallas Chicago Miami Seattle Toronto Montreal Sydney Perth Geneva Zurich Milan Turin Venice
Naples Lyon Nice Ghent Bruges Porto Seville Hamburg Munich Bremen Krakow Riga Tallinn Helsinki Bergen Stockholm Malmo
Copenhagen Reykjavik Istanbul Ankara Beirut Dubai Mumbai Lahore Bangkok Hanoi Manila Jakarta Nairobi Lagos Accra Dakar
Tunis Rabat Moscow Kyiv Sofia Belgrade Zagreb Budapest Beijing Shanghai Amsterdam Brussels Houston Santiago
"""

_COUNTRIES = """
Norway Italy France Germany Spain Portugal Austria Greece Ireland England Poland Egypt Japan Korea India Peru Ecuador
Colombia Cuba Canada Mexico Brazil Chile Argentina Australia Switzerland Belgium Latvia Estonia Finland Sweden Denmark
Iceland Turkey Lebanon Thailand Vietnam Indonesia Kenya Nigeria Ghana Senegal Tunisia Morocco Russia Ukraine Bulgaria
Serbia Croatia Hungary China Scotland Wales Malta Cyprus Nepal
"""

_COLOURS = "red blue green yellow white black brown pink purple grey golden silver violet turquoise beige scarlet"

_THINGS = """
door box car hat key book lamp chair table clock cup ring coat bike boat phone piano guitar camera bag bottle basket
knife spoon plate mirror ticket letter map pen pencil shirt scarf ball kite drum vase candle blanket pillow sofa ladder
hammer bucket rope watch wallet laptop radio suitcase tent kettle pan jacket sweater shoe glove bell flag coin stamp
bus truck cat dog horse
"""

_FOODS = """
apples pears plums grapes cherries lemons bananas peaches carrots tomatoes potatoes onions beans rice bread cheese
butter honey soup pasta pizza salad fish chicken cake cookies chocolate coffee tea milk juice nuts mushrooms pancakes
noodles yogurt pepper garlic melons berries
"""

_PLACES = """
drawer kitchen garage garden attic cellar office bedroom hall closet shed barn cupboard library museum station school
church hotel bathroom basement cabin tower market bakery pocket fridge car park studio
"""

_JOBS = """
baker doctor nurse teacher pilot farmer lawyer painter plumber driver singer dancer writer waiter barber tailor butcher
carpenter dentist gardener cook sailor soldier guide judge librarian mechanic miner potter chemist reporter student
"""

_LANGUAGES = """
English French German Spanish Italian Dutch Danish Swedish Finnish Polish Czech Greek Turkish Arabic Hebrew Hindi Tamil
Chinese Japanese Korean Thai Russian Latin Swahili Portuguese Norwegian Welsh Irish
"""

_EVENTS = """
meeting exam concert party trip lesson match dinner wedding interview lecture race festival picnic workshop parade
auction recital lunch show
"""

_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

WORDS: Final[dict[str, tuple[str, ...]]] = {
    "name": tuple(_NAMES.split()),
    "city": tuple(_CITIES.split()),
    "country": tuple(_COUNTRIES.split()),
    "colour": tuple(_COLOURS.split()),
    "thing": tuple(_THINGS.split()),
    "food": tuple(_FOODS.split()),
    "place": tuple(_PLACES.split()),
    "job": tuple(_JOBS.split()),
    "language": tuple(_LANGUAGES.split()),
    "event": tuple(_EVENTS.split()),
    "day": tuple(_DAYS.split()),
}

DISTRACTORS: Final[tuple[str, ...]] = (
    "The weather is nice today.",
    "It rained all night.",
    "The sun is shining.",
    "The train was late again.",
    "Nobody was at home.",
    "The music was too loud.",
    "It is cold outside.",
    "Everyone had a good time.",
    "The birds were singing.",
    "The shop opens at nine.",
    "We went for a long walk.",
    "The street was quiet.",
    "That was a long time ago.",
    "They talked about the news.",
    "The old tree fell down.",
    "There is nothing to worry about.",
    "The days are getting shorter.",
    "A light wind came from the sea.",
    "She read the whole story.",
    "He forgot to call back.",
)

_COMMON = """
the be is are was were am been being to of and a an in on at by for with from about into over after before under
that this these those it its he she they we you I his her their our my your him them us who whom which what when
where why how not no yes do does did done have has had having will would can could shall should may might must
there here then than so if but or because while as all any some many much more most few less other another each
every both one two three four five six seven eight nine ten first last next new old good bad great small large big
little long short high low right left same different early late young important public able own up down out off
again always never often sometimes only just very too also well even still now today tomorrow yesterday
year month week day night morning evening hour minute time way man woman child boy girl people person family
friend mother father brother sister house home room street city country world work job life hand head eye face
word name number part place case point fact company group problem question answer money water food
say said says get got give gave go went gone come came make made know knew think thought take took see saw want
use used find found tell told ask asked feel felt try tried leave left call called keep kept let begin began
show showed hear heard play played run ran move moved live lived believe bring brought happen write wrote sit sat
stand stood lose lost pay paid meet met learn change lead understand watch follow stop create speak read spend
grow open walk win teach offer remember love consider appear buy wait serve die send build stay fall cut reach
"""

COMMON: Final[tuple[str, ...]] = tuple(_COMMON.split())
