"""A generated shop in WebShop's file format: what the environment plays in when no official data is
there.

    python -m envs.shop --out DIR      # writes the files; WEBSHOP_DATA=DIR makes them the data of
                                       any WebShop, the official one too

320 made-up products of 16 kinds; three in five carry an instruction.  The shop is small but asks
for what shopping asks for:
    query        kinds share words (table lamp, lamp shade, coffee table, coffee maker), so the kind
                 alone finds too much or the wrong
    title        a title names the attributes; several products of a kind share each of them, few
                 have all, and descriptions speak of what a product is not, in the same words, so
                 that search alone puts wrong ones first
    options      a product offers a few values of a long list: the right title may lack the asked
                 colour, then going back is right
    price        the same thing exists at twice the price, above the cap of most instructions
All of it is drawn with one fixed seed, so the shop is the same on every machine.
"""

import json
import random
import re
import string
from pathlib import Path

from envs import UserError
from envs.arguments import Parser, run_tool, text

SEED = 5
PER_KIND = 20

COLOURS = ["black", "white", "navy", "grey", "green", "pink", "red", "yellow", "purple", "orange"]
SIZES = ["small", "medium", "large", "x-large"]

# kind: category, levels of the product category, middle price in dollars, attributes, option groups
KINDS = {
    "table lamp": ("garden", "Home & Kitchen › Lighting › Table Lamps", 35,
        ["touch control", "usb port", "solid wood", "dimmable", "energy saving", "linen shade",
         "easy assemble", "eye protection"],
        {"color": COLOURS, "size": ["8 inch", "12 inch", "16 inch", "20 inch"]}),
    "lamp shade": ("garden", "Home & Kitchen › Lighting › Lamp Shades", 18,
        ["hand woven", "pleated fabric", "easy clean", "fire resistant", "natural rattan",
         "double layer", "easy install", "dust proof"],
        {"color": COLOURS, "shape": ["drum", "cone", "bell", "square"]}),
    "coffee table": ("garden", "Home & Kitchen › Furniture › Coffee Tables", 120,
        ["solid wood", "storage space", "steel frame", "lift top", "easy assemble",
         "tempered glass", "scratch resistant", "round edge"],
        {"color": COLOURS, "size": ["32 inch", "36 inch", "40 inch", "48 inch"]}),
    "coffee maker": ("grocery", "Home & Kitchen › Kitchen › Coffee Makers", 60,
        ["auto shutoff", "stainless steel", "easy clean", "single serve", "bpa free",
         "programmable", "glass carafe", "low noise"],
        {"color": COLOURS, "capacity": ["2 cup", "4 cup", "8 cup", "12 cup"]}),
    "desk chair": ("garden", "Home & Kitchen › Furniture › Desk Chairs", 110,
        ["lumbar support", "height adjustable", "mesh back", "faux leather", "heavy duty",
         "easy assemble", "high density", "flip arm"],
        {"color": COLOURS, "style": ["with headrest", "without headrest", "with footrest"]}),
    "chair cushion": ("garden", "Home & Kitchen › Bedding › Chair Cushions", 24,
        ["memory foam", "machine washable", "non slip", "high density", "cotton cover",
         "cooling gel", "ultra thick", "tie strap"],
        {"color": COLOURS, "size": ["16 x 16 inch", "18 x 18 inch", "20 x 20 inch"],
         "set": ["1 piece", "2 pieces", "4 pieces"]}),
    "water bottle": ("grocery", "Sports & Outdoors › Hydration › Water Bottles", 22,
        ["leak proof", "bpa free", "stainless steel", "wide mouth", "double wall",
         "dishwasher safe", "straw lid", "vacuum insulated"],
        {"color": COLOURS, "size": ["12 ounce", "18 ounce", "24 ounce", "32 ounce"]}),
    "bottle brush": ("grocery", "Home & Kitchen › Kitchen › Bottle Brushes", 9,
        ["long handle", "bpa free", "non scratch", "easy clean", "eco friendly",
         "silicone bristle", "quick dry", "soft sponge"],
        {"color": COLOURS, "set": ["1 piece", "2 pieces", "4 pieces"]}),
    "running shoes": ("fashion", "Clothing & Shoes › Shoes › Running Shoes", 58,
        ["rubber sole", "memory foam", "arch support", "slip resistant", "breathable mesh",
         "light weight", "quick lace", "shock proof"],
        {"color": COLOURS, "size": ["6", "7", "8", "9", "10", "11"], "width": ["narrow", "regular",
         "wide"]}),
    "shoe rack": ("garden", "Home & Kitchen › Storage › Shoe Racks", 38,
        ["space saving", "heavy duty", "easy assemble", "steel frame", "natural bamboo",
         "stackable", "dust proof", "wall mounted"],
        {"color": COLOURS, "tiers": ["3 tier", "4 tier", "5 tier", "6 tier"]}),
    "phone case": ("electronics", "Electronics › Phone Accessories › Phone Cases", 15,
        ["wireless charging", "shock proof", "scratch resistant", "screen protector", "slim fit",
         "card slot", "heavy duty", "non slip"],
        {"color": COLOURS, "model": ["model s5", "model s6", "model s7", "model s8"]}),
    "pencil case": ("fashion", "Office Products › School Supplies › Pencil Cases", 12,
        ["large capacity", "double zipper", "faux leather", "easy clean", "light weight",
         "mesh pocket", "card slot", "water resistant"],
        {"color": COLOURS, "size": SIZES}),
    "hair brush": ("beauty", "Beauty › Hair Care › Hair Brushes", 13,
        ["boar bristle", "anti static", "natural bamboo", "long handle", "wet detangling",
         "scalp massage", "easy clean", "heat resistant"],
        {"color": COLOURS, "set": ["1 piece", "2 pieces"]}),
    "hair dryer": ("beauty", "Beauty › Hair Care › Hair Dryers", 45,
        ["fast drying", "low noise", "cool shot", "foldable handle", "anti static", "light weight",
         "heat resistant", "dual voltage"],
        {"color": COLOURS, "nozzle": ["diffuser", "concentrator", "comb"]}),
    "throw blanket": ("garden", "Home & Kitchen › Bedding › Throw Blankets", 30,
        ["super soft", "machine washable", "fleece lining", "cotton knit", "reversible",
         "quick dry", "pet friendly", "ultra thick"],
        {"color": COLOURS, "size": ["50 x 60 inch", "60 x 80 inch", "90 x 90 inch"]}),
    "beach towel": ("fashion", "Home & Kitchen › Bath › Beach Towels", 21,
        ["quick dry", "super soft", "sand free", "cotton knit", "light weight", "machine washable",
         "ultra thick", "water resistant"],
        {"color": COLOURS, "size": ["30 x 60 inch", "36 x 72 inch", "40 x 80 inch"]}),
}  # fmt: skip

# The words of titles that are nouns; a brand name is one, too.
NOUNS = set(
    """table lamp shade coffee maker desk chair cushion water bottle brush shoes shoe rack phone
    case pencil hair dryer throw blanket
    beach towel touch control usb port wood energy linen eye protection fabric fire rattan layer
    dust storage space steel frame top glass
    scratch edge shutoff carafe noise lumbar support height mesh leather duty density arm memory
    foam machine cotton cover gel strap leak
    mouth wall dishwasher straw lid vacuum handle eco silicone bristle sponge rubber sole arch
    slip weight lace shock bamboo screen
    protector card slot capacity zipper pocket boar scalp massage heat shot voltage fleece lining
    knit pet sand""".split()
)


def files(seed=SEED, kinds=None):
    """(items, instructions, human instructions): the contents of the three official files, as lists
    and dicts.

    Other seeds make other shops of the same kinds of products; kinds: a table like KINDS, which is
    the default."""
    rng, kinds = random.Random(seed), kinds or KINDS
    items, instructions = [], {}
    for kind, (category, levels, price, attributes, groups) in kinds.items():
        # no two instructions of a kind ask for the same attributes, so no two splits share a goal
        asked = set()
        for number in range(PER_KIND):
            # Every fourth product is the one before it at twice the price, and with other options.
            if number % 4 != 3:
                own, factor = rng.sample(attributes, 4), rng.uniform(0.6, 1.4)
            else:
                factor *= 2
            asin = "B0" + "".join(rng.choices(string.ascii_uppercase + string.digits, k=8))
            brand = _brand(rng)
            title = (
                f"{brand} {_title(own[0])} {_title(own[1])} {_title(kind)} with {_title(own[2])}"
            )
            options = {
                name: sorted(rng.sample(values, min(3, len(values))), key=values.index)
                for name, values in groups.items()
            }
            customization = {
                name: [{"value": value, "image": None} for value in values]
                for name, values in options.items()
            }
            other = rng.choice([name for name in kinds if name != kind])
            lacks = rng.sample([attribute for attribute in attributes if attribute not in own], 2)
            # The words of an attribute, but not the attribute: "gel cooling" matches a search for
            # it and does not count as having it.
            lacks = " and ".join(" ".join(reversed(attribute.split())) for attribute in lacks)
            description = (
                f"This {kind} has {own[3]}; it goes with a {other}. A {kind} without "
                f"{lacks}: no {lacks}. {_praise(rng)}"
            )
            items.append(
                {
                    "name": title,
                    "full_description": description,
                    "pricing": f"${price * factor:.2f}"
                    + (f" to ${price * factor + 4:.2f}" if number % 8 == 6 else ""),
                    "images": [""],
                    "product_category": levels,
                    "average_rating": "",
                    "small_description": [
                        f"{attribute.capitalize()}: {_praise(rng)}" for attribute in own
                    ],
                    "customization_options": customization,
                    "asin": asin,
                    "category": category,
                    "query": kind,
                    "page": 1,
                }
            )
            instructions[asin] = {"attributes": own}
            wanted = rng.sample(own[:3], 2)
            if number % 4 != 3 and frozenset(wanted) not in asked:
                asked.add(frozenset(wanted))
                instructions[asin] |= {
                    "instruction": f"Find me {', '.join(wanted)} {kind}",
                    "instruction_attributes": wanted,
                }
    rng.shuffle(items)
    return items, instructions, {}


def _brand(rng):
    return "".join(rng.choice("bdfklmnprstvz") + rng.choice("aeiou") for _ in range(3)).capitalize()


def _title(words):
    return " ".join("USB" if word == "usb" else word.capitalize() for word in words.split())


def _praise(rng):
    first = rng.choice(
        [
            "made for every day",
            "tested by our own team",
            "a gift for friends",
            "loved at home and at work",
        ]
    )
    ends = ["with a two year promise", "ready to use", "packed with care", "in a simple box"]
    return f"{first}, {rng.choice(ends)}."


def title_nouns(items=None):
    """asin -> the nouns of its title, lower-case, in order: what spaCy is asked for with the
    official products."""
    nouns = {}
    for item in items or files()[0]:
        brand, *words = re.findall(r"\w+", item["name"].lower())
        nouns[item["asin"]] = [brand] + [word for word in words if word in NOUNS]
    return nouns


def write(folder):
    """Writes the official files and the title nouns; returns their paths.  UserError where the
    folder cannot be written."""
    items, instructions, human = files()
    contents = {
        "items_shuffle.json": items,
        "items_ins_v2.json": instructions,
        "items_human_ins.json": human,
        "title_nouns.json": title_nouns(),
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the generated shop to {folder} ({error}); choose another --out"
        ) from None
    return [folder / name for name in contents]


def main():
    parser = Parser(description="write the generated shop as files in WebShop's format")
    about = "folder for the four JSON files; made if it is not there"
    parser.add_argument("--out", required=True, type=text, metavar="DIR", help=about)
    paths = write(parser.parse_args().out)
    print(f"wrote {', '.join(path.name for path in paths)} to {paths[0].parent}")


if __name__ == "__main__":
    run_tool(main)
