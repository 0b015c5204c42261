"""English sentences of many lengths, written for this project: what an engine's vectors are compared on."""

from typing import Final

_SHORT: Final = """\
Where is my parcel?
Thank you, that worked.
The battery died again.
Cancel my subscription, please.
Rain is expected tomorrow.
Great film, poor ending.
Stop calling me!
Who won the match?
Prices rose in March.
I forgot my password.
Nice shoes, wrong size.
The soup was cold.
Shares fell two percent.
Can I pay by card?
Free tickets, click here now!
The train leaves at nine.
"""

_MIDDLE: Final = """\
The new phone charges quickly, but the screen scratches far too easily for the price.
Our quarterly profit grew by eleven percent, helped by strong exports of farm machines.
After two hours on hold, a friendly woman called Ines solved my problem in a minute.
The minister said the bridge would open in autumn, a year later than first promised.
I ordered the blue curtains and received green ones, which do not match anything we own.
Scientists found traces of water ice in a crater that has never seen sunlight.
Could you tell me whether the hotel lets guests bring a small, well-behaved dog?
The second half was dull until the goalkeeper ran forward and scored with his head.
Congratulations, you have been selected to receive a gift worth one thousand dollars.
Copper traded slightly higher in London as warehouses reported smaller stocks.
Her first novel reads like a letter to a sister who will never open it.
The update removed the one feature I used every day, and nobody answers in the forum.
Grate the carrots, mix them with lemon juice and honey, and let them rest for an hour.
A court in the capital ruled that the tax had been collected without a legal basis.
My flight was delayed, my bag was lost, and yet the crew made it almost bearable.
The museum shows maps drawn by sailors who had never left the harbour.
Please send the invoice to our new address and remove the old one from your records.
The lens is sharp in the middle, soft at the edges, and heavy enough to build muscles.
Farmers expect a smaller wheat harvest because the spring was both dry and late.
He spoke for an hour without notes and nobody in the hall looked at a phone.
The app asks for my location even though all it does is set an egg timer.
Central banks left interest rates unchanged, as most economists had predicted.
We waited forty minutes for a table and the waiter still smiled as if we were early.
The patch fixes a crash that happened when a folder was renamed during a backup.
"""

_LONG: Final = """\
I bought this kettle three weeks ago because every review praised how quiet it was; mine sounds like a small aircraft, \
takes five minutes to boil a litre, and has already begun to rust around the handle, so I would like my money back.
The company announced on Tuesday that it would buy its smaller rival for four hundred million dollars in cash, a deal \
that still needs the approval of regulators in three countries and of shareholders who meet at the end of June.
When the lights went out in the theatre, the pianist kept playing, the audience began to hum along, and for ten minutes \
nobody remembered that we had come to see a play about a family that cannot stand silence.
Dear team, thank you for the quick visit yesterday; the heating works again, but the technician left a bag of tools in \
our cellar, and we would be glad if somebody could collect it before we leave for our holidays on Friday morning.
Although the committee agreed that the river had to be protected, its members argued until midnight about who should pay \
for the new treatment plant, and in the end they only decided to meet again after the elections.
The telescope will look at the same patch of sky for two hundred hours, collecting light that left its galaxies long \
before the earth existed, and the pictures will be published a year later for anybody to use.
You can return the bicycle within thirty days if it has not been ridden outdoors, but please keep the box, because the \
carrier does not accept frames that are wrapped in anything softer than two layers of cardboard.
The defender, who had joined on loan in January, was praised for his calm; he won most of his duels, started the move \
that led to the only goal, and then apologised to the referee for shouting at him before half time.
Traders blamed the sudden fall in crude oil on rumours that two producers had quietly raised their output, rumours both \
governments denied within the hour, though by then most of the day's losses had already been made.
I have read every book in this series since I was twelve, and while the plot of the last one creaks in places, the final \
chapter made me call my brother at two in the morning just to ask whether he remembered the lighthouse.
Your account will be closed today unless you confirm your details; open the link below, enter your name, card number and \
the code on the back, and do not tell anybody at your bank, because our system has been updated for your safety.
To make the dough, warm the milk until it is comfortable to the touch, stir in the yeast and a spoon of sugar, wait until \
it foams, then add flour a little at a time and knead it until it no longer sticks to your hands or to the table.
"""

_ODD: Final = """\
ok
404
WOW!!! SO GOOD!!! BUY IT!!!
re: fwd: re: meeting moved to 3pm
Total: 12.50 EUR (incl. 19% VAT), order no. 88-1403-B
Café crème, naïve façade, jalapeño: all spelled with accents.
def area(r): return 3.14159 * r ** 2
Yes. No. Maybe. Ask me again tomorrow.
@nina did you see this?? #sunset #nofilter :)
https://example.org/help?topic=refund&lang=en
The the the the the the the the.
One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen.
"""

QUALITY_TEXTS: Final = tuple(f"{_SHORT}{_MIDDLE}{_LONG}{_ODD}".splitlines())
