"""What the demo model is asked about moerun, and the true answers.

A phrasing is a pattern: `{a|b|}` stands for each of its choices, the empty one included.
`names` are things that may be asked for ("what is X"), `tasks` are what someone wants to do
("how do I X"), `questions` are complete questions.

Knows: every subject, its answer and its phrasings.
Does not know: how phrasings are combined or varied, or how a model learns them.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One subject: the answer, and the ways to ask for it."""

    name: str
    answer: str
    names: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


ABOUT_THE_PROGRAM: Final = (
    Intent(
        name="what_is_moerun",
        answer="moerun runs Mixture-of-Experts GGUF models that are larger than memory, by "
        "placing their tensors over VRAM, RAM and SSD.",
        names=("moerun", "this program", "this tool", "this software", "this thing", "moe run"),
        questions=(
            "what {does|can} {moerun|this program|this tool|it} do",
            "what is the {purpose|point|goal|idea|use} of {moerun|this program|this tool|it}",
            "what {problem|task} does {moerun|this tool} solve",
            "what {kind of|sort of} {program|tool|software|app} is {moerun|this|it}",
            "introduce {moerun|the program|this tool}",
            "{i am|i'm} new {here|to this|to moerun}, what is {this|it|moerun}",
            "what {is|was} moerun {made|built|meant|intended|written} for",
            "what {can|could|would|should|do} {i|people|one} use {moerun|this tool|this} for",
            "{why would i use|when should i use|who needs|who is it for:} {moerun|this tool|it}",
            "{somebody|someone|a friend|my colleague} {told me about|mentioned} moerun, what is it",
            "i {found|discovered|installed|downloaded} moerun, what {does it do|is it|now is it}",
            "{summarize|sum up} {moerun|what moerun does}",
            "{give me|i want} {an overview|a summary|an introduction} {of|to} {moerun|the tool}",
            "moerun in {short|brief|two words|one line|a few words}",
            "{why|who} would {someone|anyone|one|people} {want|need|install|care about} {moerun|"
            "this|this tool}",
            "what's {this|it|moerun} {all about|about|good for}",
            "so what {does this thing do|is this thing|is it}",
            "{tell|teach} me the basics of moerun",
            "my {colleague|boss|friend} {praises|likes|recommends|keeps praising} moerun{|, what "
            "is it|, what does it offer|but what does it really do}",
            "what does {moerun|it|this} {offer|give me|bring|do for me}",
            "{never heard of|first time i see} moerun",
        ),
    ),
    Intent(
        name="benefit",
        answer="Each token needs only a few experts, so a large MoE model still answers when "
        "many of its experts lie in RAM or on SSD.",
        questions=(
            "how {can|does|is it possible that} a {model|llm} {larger|bigger} than {memory|ram|"
            "vram|my gpu} {run|work|be used}",
            "how does {moerun|it|this tool|that} {manage that|do it|do that|achieve that}",
            "why does {it|this|that|placing experts on disk} {work|help|make sense}",
            "what is the {trick|secret|main idea|principle} {|behind moerun|of moerun|here}",
            "{can i run|is it possible to run|how is it possible to run} {a model|models|something}"
            " {larger|bigger} than {my memory|my ram|memory|the gpu|ram}",
            "{my|the} {model|file} is {larger|bigger} than {my memory|my ram|memory|the gpu}, "
            "{will it run|does it still run|can it work|is that ok}",
            "why are {moe|mixture of experts} models {suited|good|well suited} for {this|little "
            "memory|offloading}",
            "{can|will} {a|an} {huge|giant|enormous|100 gb|big} model run on {my|a} {small|normal|"
            "home|modest} {machine|computer|pc|laptop}",
            "how {on earth |}can {such |}a {huge|giant|200 gb|300 gb|massive} model {work|run|"
            "fit} on {a|my} {small|tiny|little|weak|cheap|old} {pc|machine|computer|laptop}",
            "how do {you|they} {squeeze|fit|get} a {huge|giant|large} model {into|onto} {a small "
            "machine|little memory|my pc}",
            "{isn't|is not} a model that size too {large|big} for {a pc|my machine|my laptop}",
            "what makes it possible to run {big|huge} models {|with little memory|on small "
            "machines}",
            "i {only|just} have {8|16|32} gb, can i run a {huge|big|70 gb|100 gb} {model|moe}",
            "{a|the} model is {200 gb|huge|100 gigabytes} and my pc {is small|has little "
            "memory}, how {is that|can that be} {possible|supposed to work}",
            "how is {that|it} supposed to work with {so little|less} memory",
            "{doesn't|does not} the whole model {have|need} to be in memory",
        ),
    ),
    Intent(
        name="who_are_you",
        answer="I am moerun's demo model, a small Mixture-of-Experts trained only to answer "
        "questions about moerun.",
        questions=(
            "who are you",
            "what are you",
            "who am i {talking|speaking|chatting} {to|with}",
            "{what is|what's} your name",
            "introduce yourself",
            "tell me about yourself",
            "are you {a human|a person|a robot|an ai|a bot|chatgpt|a language model|real|qwen}",
            "which {model|llm} {are you|is this|am i using|is answering}",
            "what {kind of model|sort of model|model} are you",
            "who {made|trained|created|built|wrote} you",
            "do you have a name",
            "am i {speaking|talking|chatting} {with|to} a {person|human|machine|bot|real person}",
            "what {am i|are we} talking to",
            "{is this|are you} a {real person|machine|computer program}",
            "say who you are",
            "what do i call you",
            "{is there|do i talk to} a human {|behind this|at the other end|there|reading this}",
            "are you {alive|human|a man|a woman|a program}",
        ),
    ),
    Intent(
        name="what_can_you_answer",
        answer="Ask me about moerun: its commands, settings, memory tiers, exit codes, or what "
        "experts, routers and GGUF files are.",
        questions=(
            "what can {i|we} ask {you|here|}",
            "what do you know {|about}",
            "what can you {do|tell me|help me with|help with|answer}",
            "how can you help {me|}",
            "can you help {me|}",
            "{i need|i want} {some |}help",
            "help",
            "help me",
            "{what|which} {questions|topics|subjects} {can you answer|do you know|are possible}",
            "{give me|show me|list} {some |}{example|sample} questions",
            "what should i ask {you|}",
            "what are you {good|useful} {for|at}",
            "{give me|what are} {ideas|examples|an idea} {of|for} what {i could|to|i can} ask",
            "{any|some} suggestions {for|on} what to ask",
            "what {sort|kind} of questions can i ask {you|}",
            "i don't know what to ask",
            "{which|what} {subjects|topics|things} {are you familiar with|do you know|do you "
            "cover|can you talk about}",
            "your {topics|knowledge|skills}",
        ),
    ),
    Intent(
        name="demo_model",
        answer="The demo is a small qwen3moe model that ships with moerun, so that it can answer "
        "offline: moerun run demo.",
        names=(
            "the demo",
            "the demo model",
            "the embedded model",
            "the built-in model",
            "the included model",
            "the bundled model",
            "demo.gguf",
        ),
        tasks=(
            "{try|test|use|start|run} {the demo|the demo model|the built-in model}",
            "{try|test} {moerun|it} without {downloading|having|getting} {a|any} {model|file}",
        ),
        questions=(
            "{is there|does it come with|does moerun ship with|do you include} {a|any} {demo|"
            "built-in|bundled|included|sample|example|test} model",
            "{do i need|must i have} {a|my own} model {file |}to {try|test} {it|moerun}",
            "which model {ships|comes|is included|is bundled} with moerun",
            "how {large|big} is the demo {model|}",
            "how was the demo {model|} {trained|made}",
            "{i have no|without a|i don't have a} model, can i {try|test} {it|moerun}",
            "{must|should|do} i {bring|download|find|get|provide} {my own|a} model {first|to try "
            "it|}",
            "{is|are} {a|any} model {included|bundled|shipped|part of it}",
            "{something|anything} to {play with|try} without a {big |}download",
            "what does the demo know",
            "{which|what} {sort|kind} of model is the demo",
            "a {quick|first|short} {try|test|look} without {downloading|fetching} {gigabytes|"
            "anything|a model}",
            "{offline|small|tiny} model to {try|play with}",
        ),
    ),
    Intent(
        name="compared_with_ollama",
        answer="moerun has verbs like ollama's, but it plans every tensor of an MoE model over "
        "VRAM, RAM and SSD and explains each choice.",
        questions=(
            "{how is|how does} {moerun|it|this} {different from|differ from|compare to|compare "
            "with} {ollama|lm studio|other runners}",
            "{what is|what's} the difference {between moerun and ollama|to ollama|from ollama}",
            "{why not|why not just|should i|can i not} use ollama {instead|}",
            "moerun {vs|versus|or|compared with|against} ollama",
            "{is it|is moerun} {like|similar to|the same as|better than} ollama",
            "i {already |}{use|have|run|know} ollama, why {change|switch|moerun|should i switch}",
            "what {does|can} {moerun|it|this} do that ollama {does not|doesn't|can't}",
            "{advantages|benefits} {over|compared to} ollama",
            "how is this not just ollama",
            "ollama {works|is fine|does the job} for me, {why|what's better|what is different} "
            "here",
            "{what's|what is} better than ollama {here|about it}",
            "{ollama|lm studio} {already does this|is enough|and moerun}",
        ),
    ),
    Intent(
        name="license",
        answer="moerun is free software under the MIT license.",
        names=("the license", "the licence"),
        questions=(
            "{what|which} {license|licence} {is it under|does it have|does moerun have|applies}",
            "{is it|is moerun} {free|open source|free software|gratis}",
            "{may|can} i use {it|moerun} {commercially|at work|in my company|for money|at my job}",
            "how much does {it|moerun} cost",
            "do i {have to|need to} pay {for it|for moerun|}",
            "under which {license|licence|terms} is moerun {published|released|distributed}",
            "{can|may} {my company|my firm|we|a business|anyone} use it {for free|freely|without "
            "paying|commercially}",
            "is {there a|a} {fee|price|subscription} {for it|needed|}",
            "may i {copy|modify|change|sell|distribute|fork} it",
            "who owns the code",
            "do i {owe|pay} {money|anything|something|anybody} {for it|when i use it at work|}",
            "{price|cost|fees} of moerun",
            "{commercial|business|office} use",
        ),
    ),
    Intent(
        name="platforms",
        answer="moerun runs on Linux, macOS and Windows with Python 3.11 or newer.",
        questions=(
            "{which|what} {operating systems|platforms|systems|os} {are supported|does it support|"
            "does moerun support|work}",
            "does {it|moerun} {run|work} on {windows|linux|macos|a mac|debian|ubuntu|apple}",
            "{is there|do you have} {a|any} {windows|mac|linux} {version|support|build}",
            "{which|what} {version of python|python version|python} {do i need|is needed|is "
            "required|does it need|does moerun need}",
            "{is|are} {python 3.11|python 3.10|windows|mac|linux} {supported|enough|ok|fine}",
            "{what are the|list the} {requirements|prerequisites} {of moerun|}",
            "will {it|this|moerun} {work|run} on my {macbook|mac|windows pc|linux box|thinkpad|"
            "chromebook}",
            "{i use|i'm on|i have} {windows|a mac|linux|ubuntu|fedora|arch}, {will it work|is "
            "that ok|does it run}",
            "is python 3.{9|12|13|10} {ok|fine|enough|too old}",
            "what must be installed {before|first|beforehand}",
            "{something|a version} for {windows 11|windows 10|macos|linux mint|debian}",
            "{windows|mac|linux} {users|machine|support}",
        ),
    ),
    Intent(
        name="network",
        answer="moerun has no telemetry: running and planning local models opens no network "
        "connection.",
        names=("telemetry", "privacy", "tracking"),
        questions=(
            "{does|will|can} {it|moerun|this program} {send|upload|leak|transmit|share} {my |}"
            "{data|anything|information|conversations|chats|texts|usage data} {|anywhere|to "
            "someone|to the cloud|over the internet|home|to the internet}",
            "does {it|moerun} {phone|call} home",
            "{does it|does moerun|do i} {need|require|use} {the internet|internet|a network|a "
            "connection|to be online|the cloud}",
            "{does it|does moerun|can i use it|can it|will it} {work|run|working} {offline|without "
            "internet|without a network|on a plane}",
            "is {there any|there} {telemetry|tracking|spying|analytics|data collection} {|in it|in "
            "moerun}",
            "{is|are} my {data|chats|conversations|texts|questions} {private|safe|kept private|"
            "confidential}",
            "does {it|moerun} {collect|gather|track|record} {data|anything|statistics|usage|me}",
            "does {everything|all|the model} {stay|run} {local|on my machine|on my computer|"
            "locally}",
            "{is|does} anything {uploaded|sent|leaving|leave} {my machine|the machine|from here|"
            "while i chat|when i use it}",
            "who can {read|see} {my chats|my conversations|what i write|what i type|my inputs}",
            "{where do|do} my {questions|chats|inputs|words} go {anywhere|to a company|}",
            "{is|are} {there |}network {connections|traffic|access} {made|used|needed|}",
            "can i {unplug|disconnect|cut} {the internet|the network|the cable}",
            "i'm {worried|concerned} about {my |}{privacy|data|secrets}",
            "{privacy|secrets|confidential data}",
            "does {it|anything} {go out|get out|go online|leave} {|to the web|to a cloud}",
        ),
    ),
)

IDEAS: Final = (
    Intent(
        name="moe",
        answer="A Mixture-of-Experts model has many expert networks in each layer, and a router "
        "picks a few of them for every token.",
        names=(
            "a mixture-of-experts model",
            "mixture of experts",
            "moe",
            "an moe",
            "moe models",
            "an moe model",
            "mixture-of-experts",
            "the moe architecture",
            "sparse models",
            "a sparse model",
        ),
        questions=(
            "what does moe {stand for|mean}",
            "how {does|do} {a mixture of experts|an moe|moe "
            "models|a mixture of experts model} work",
            "what {makes|is special about} {a mixture of experts|an moe} {model|} {special|}",
            "{what is|what's} the difference between {a dense model and an moe|dense and sparse "
            "models|moe and dense models}",
            "{moe|m o e}, what {does it|is that|does that} {stand for|mean|short for}",
            "what is the {idea|principle} {behind|of} {moe|mixture of experts|experts models}",
            "{teach|tell} me {the basics of|about} {moe|mixture of experts} {models|}",
            "how does a mixture of experts {differ|work}",
            "why {is it|are they} called mixture of experts",
            "{sparse|moe} {versus|vs|or} dense {|models}",
            "{what's|what is} {sparse|mixture|moe} about",
        ),
    ),
    Intent(
        name="expert",
        answer="An expert is one of many small feed-forward networks in a layer; it computes only "
        "the tokens that the router sends to it.",
        names=(
            "an expert",
            "experts",
            "the experts",
            "one expert",
            "an expert network",
            "expert networks",
            "a single expert",
            "expert weights",
            "expert tensors",
        ),
        questions=(
            "what {does|do} {an expert|the experts|experts} {do|compute|look like|contain}",
            "what is {inside|in} {an expert|the experts}",
            "how does an expert work",
            "what is {meant by|the meaning of} {expert|experts} {here|in moe|in a model|}",
            "what role {does an expert|do experts} play {in a layer|in a model|}",
            "what is the {job|role|task|purpose} of {an|one|a single} expert {|in a layer|in the "
            "model}",
            "{in|inside} a layer, what {is|does} {an expert|one expert} {do|}",
            "{is|are} {an expert|experts} {a person|a human|small models|a network|a neural "
            "network}",
            "why {are they|is it} called {experts|an expert}",
            "what are {these|those|the} expert {things|parts|networks} {anyway|}",
            "{an|one} expert of {a layer|the model}",
            "expert, what is {it|that}",
        ),
    ),
    Intent(
        name="router",
        answer="The router is a small matrix in each layer that scores all experts and picks the "
        "best few for every token.",
        names=(
            "the router",
            "a router",
            "routing",
            "the gate",
            "the gating network",
            "expert routing",
            "router weights",
            "the router of a layer",
        ),
        questions=(
            "how {are|do} {the |}experts {chosen|selected|picked|get chosen|get selected}",
            "{who|what} {chooses|selects|picks} {the |}{experts|expert} {|for a token|for each "
            "token}",
            "how does the {router|gate} {work|choose|decide|select experts|pick experts}",
            "what {does|is the job of} the {router|gate} {do|}",
            "how is {a|each} token {sent|assigned|routed|dispatched} to {an expert|experts|its "
            "experts}",
            "how does the {model|layer} {choose|decide|know|select} {which expert to use|which "
            "experts to use|between experts|what expert runs}",
            "what {picks|chooses|selects|determines} {which experts run|the experts|an expert|"
            "the expert}",
            "how {does a token|do tokens} {find|reach|get to|know} {its|their} {experts|expert}",
            "by what {rule|means|mechanism} {are|is} {experts|an expert} {chosen|selected|picked}",
            "{which|what} {part|component|piece} {of the layer |}{decides on|chooses|selects} "
            "{the |}experts",
            "{by whom|how} are tokens {handed|sent|given|passed} to experts",
            "{token|expert} {dispatch|selection|choice|assignment}",
            "what {sends|directs|routes} tokens to {their |}experts",
        ),
    ),
    Intent(
        name="top_k",
        answer="Top-k means that each token uses only the k best-scored experts; in the demo "
        "model that is 2 of 16 in every layer.",
        names=(
            "top-k",
            "top k routing",
            "top-2",
            "the number of used experts",
            "active experts",
            "top-k experts",
            "active parameters",
        ),
        questions=(
            "how many experts {are used|are active|work|run|does a token use|does each token use|"
            "compute} {|per token|for each token|for a token|at once}",
            "how many experts {does the demo have|are there|does the demo model have|has the demo}",
            "{are|do} all experts {used|active|run|work} {for each token|at once|all the time|}",
            "how many {experts|of the experts} {does the router|does a layer} {pick|choose|select}",
            "{for|with} {one|a single|each} token, how many experts {are busy|work|are computed|"
            "do the work}",
            "how many {experts are|of them are} {busy|computed|needed|chosen} {at a time|per "
            "token|for a single token}",
            "{is|are} only {some|a few|two} experts {used|active|computed}",
            "what {share|part|fraction} of the {model|experts|weights} is active",
            "are {all|all sixteen|16|all 16} experts {evaluated|computed|needed|used} {for each|"
            "per} {word|token}",
            "two of sixteen",
            "{k|number of} experts per token",
        ),
    ),
    Intent(
        name="dense_part",
        answer="The dense part is what every token uses: embeddings, attention, norms, routers and "
        "shared experts.",
        names=(
            "the dense part",
            "dense weights",
            "the dense half",
            "dense tensors",
            "the non-expert weights",
            "the dense layers",
        ),
        questions=(
            "{which|what} {weights|tensors|parts} {are|count as} dense",
            "{which|what} {weights|tensors|parts} {does|do} every token {use|need}",
            "what {remains|is left|else is there} {besides|apart from|without} the experts",
            "which {weights|tensors|parts of the model} are always {used|needed|active}",
            "{which|what} {part|parts} of the model {is|are} needed {for every token|all the "
            "time|at each step|by every token}",
            "what {isn't|is not} an expert",
            "what is {shared by|used by|common to} all tokens",
            "what belongs to {the |}dense {weights|part|half}",
            "is {attention|the router|the embedding} dense",
        ),
    ),
    Intent(
        name="shared_expert",
        answer="A shared expert computes every token, whatever the router picks, so it is placed "
        "with the dense weights.",
        names=("a shared expert", "shared experts", "the shared expert"),
        questions=(
            "where {is|are|do} {a shared expert|shared experts} {placed|go|put|kept}",
            "{what is|what's} the difference between {shared|a shared expert} and {routed|normal} "
            "experts",
            "{are|is} {shared experts|a shared expert} always {used|active}",
            "{are there|is there} {experts|an expert} that {always|every time} {run|runs|works|"
            "is used}",
            "an expert that {sees|gets|computes} {all tokens|every token}",
        ),
    ),
    Intent(
        name="gguf",
        answer="GGUF is llama.cpp's file format for models: a header with facts and the tensor "
        "list, then the weights.",
        names=(
            "gguf",
            "a gguf",
            "a gguf file",
            "gguf files",
            "the gguf format",
            "gguf format",
            "the file format",
            ".gguf",
        ),
        questions=(
            "{which|what} {file format|format|file type|model format|kind of file|files} {does "
            "moerun|does it} {use|need|read|support|accept|open|load}",
            "what is {inside|in|stored in} a gguf {|file}",
            "what does gguf {stand for|contain}",
            "{can it|does it|can moerun} {load|read|use|open} {safetensors|pytorch files|onnx|other"
            " formats}",
            "{what|which} {file type|kind of file|type of file|format} must {my|a|the} model "
            "{have|be|be in}",
            "{which|what} models files can {it|i} {load|open|use}",
            "can i {open|view|edit} a gguf",
            "can i {give|feed|pass} it a {safetensors|pytorch|onnx} {checkpoint|file|model}",
            "{safetensors|pytorch} {supported|support|or gguf}",
            "{extension|ending} of {the |}model files",
        ),
    ),
    Intent(
        name="kv_cache",
        answer="The KV cache holds the keys and values of all earlier tokens, so its size grows "
        "with the context.",
        names=(
            "the kv cache",
            "kv cache",
            "a kv cache",
            "the key value cache",
            "kv",
            "the kv",
            "the key-value cache",
        ),
        questions=(
            "{what|which things} does the kv cache {hold|store|contain|keep|save}",
            "why does the {kv cache|kv} {grow|need memory|get larger|use so much memory}",
            "why {do i need|is there} a kv cache",
            "what is {kept|held|in} the kv cache",
            "how {large|big} is the kv cache",
            "why does a longer context {need|use|take|cost} more memory",
            "why {is there|do we need|have} a cache {for|of} {keys and values|attention}",
            "what does {kv|the kv cache|kv cache} {store|save|remember|contain|hold}",
            "what {information|data|things} {is|are|gets} {stored|saved|kept|held} in {the |}kv "
            "cache",
            "which memory grows with {the context|the conversation|longer texts}",
            "the cache {of|for} keys and values {is|seems} {big|large}, why",
            "attention {cache|memory}",
            "keys and values {of attention|cached|}",
        ),
    ),
    Intent(
        name="mmap",
        answer="With mmap the system maps the model file into memory and reads a page from SSD "
        "only when it is touched.",
        names=(
            "mmap",
            "memory mapping",
            "a memory map",
            "mapping the file",
            "memory mapped files",
            "mmapped weights",
            "a memory-mapped file",
        ),
        questions=(
            "how does {mmap|memory mapping} work",
            "why {is mmap used|do you use mmap|mmap|use mmap}",
            "how {are|do} {weights|experts|tensors} {read|loaded|fetched|get read|come} from {ssd|"
            "disk|the ssd|the disk}",
            "what {happens|does the system do} when a page is {touched|missing|not in memory}",
            "what does it mean {that|when|if} a file is {mapped|memory mapped|mmapped}",
            "what is {memory mapping|a mapped file|mapping}",
            "{is|are} {the file|files|weights} mapped {into memory|or read|}",
            "how can a file be {used|read} without loading it {|all|completely}",
            "does the {operating system|os|kernel} {page|load|read} the weights {on demand|when "
            "needed|lazily|}",
            "{pages|paging} {from|on} {disk|the file}",
            "weights {on demand|lazily} from the file",
        ),
    ),
    Intent(
        name="quantization",
        answer="Quantization stores weights with fewer bits, such as Q4_K or Q8_0, so that a model "
        "takes less memory.",
        names=(
            "quantization",
            "quantisation",
            "a quant",
            "quants",
            "a quantized model",
            "q4_k",
            "q8_0",
            "quantized weights",
            "mxfp4",
        ),
        questions=(
            "why {are|do people use} {quantized models|models quantized|quants|quantization}",
            "what {does|is} {q4|q4_k|q8_0|q4_k_m|q6_k} {mean|stand for|}",
            "how {can|do|are} {weights|models} {become|made|get} smaller",
            "{what's|what is} the {meaning of|point of|meaning behind} {q4_k|q4|q8|q8_0|q4_k_m|"
            "q5_k} {|in file names|in model names|in a name}",
            "what do the {q4|q8|q letters} {names|in the name} {mean|}",
            "{fewer|less} bits {per|for a} weight",
            "{which|what} quant should i {use|take}",
            "{models|weights} with {4|8|fewer} bits",
            "how {come|are} {4 bit|8 bit|quantized} models {smaller|made}",
        ),
    ),
    Intent(
        name="token",
        answer="A token is a piece of text, often a word or a part of one; models read and write "
        "text token by token.",
        names=("a token", "tokens", "the tokens", "a single token"),
        questions=(
            "how {long|large|big} is a token",
            "is a token a {word|letter|character}",
            "how does a model {read|write|see} text",
            "what {counts as|is called} a token",
            "how many {tokens|words} is a {word|sentence}",
            "what are tokens",
        ),
    ),
    Intent(
        name="layer",
        answer="A layer is one step of the model: attention and then experts; a model is a stack "
        "of layers.",
        names=("a layer", "layers", "the layers", "a model layer", "one layer"),
        questions=(
            "what {does|is in|is inside} a layer {do|}",
            "what is a model {made|built} of",
            "how is a {model|language model} {built|structured|organized}",
            "what is a {layer|block} of a {model|network}",
            "what do {layers|the layers} do",
            "how many layers",
        ),
    ),
    Intent(
        name="lossless",
        answer="Placement is lossless: on CPU the logits are bit-equal to plain llama-cpp-python "
        "with the same settings, wherever the experts lie.",
        names=("lossless", "being lossless", "lossless placement"),
        questions=(
            "{does|will|can} {placement|offloading|moving experts|using the ssd|moerun|it|this} "
            "{change|alter|affect|influence} {the answers|answers|the output|the result|results|"
            "the quality|what the model says}",
            "{is|are} {it|moerun|the output|the results|the answers|placement} {lossless|exact|the "
            "same|identical|bit-equal|correct}",
            "{do|will} i {lose|sacrifice|give up} {quality|accuracy|precision|anything}",
            "{does|is} {the quality|quality|accuracy} {suffer|reduced|lower|drop|worse} {|when "
            "experts are on ssd|with offloading|because of placement}",
            "is the {output|answer} the same as {with |}{llama.cpp|llama-cpp-python|plain "
            "llama.cpp|the original}",
            "{does it|does moerun} {drop|skip|compress|approximate|prune} experts",
            "is {the output|the text|what i get} {identical|the same|equal|unchanged} {to|as "
            "with|compared to} {plain |}{llama.cpp|the original model|normal llama.cpp|running "
            "it fully in memory}",
            "does {it|the model} get {dumber|worse|less accurate|stupid} {|when offloaded|on ssd|"
            "with little memory}",
            "{is there|do i have|what is the} {quality loss|loss of quality|a loss|loss}",
            "does {quality|accuracy} depend on {where experts lie|placement|the tier|the memory}",
            "does {shuffling|moving|spreading} {experts|weights|tensors} {around |}{alter|change|"
            "hurt} {what it says|the text|the answer|quality}",
            "same {answers|logits|results|quality} {everywhere|wherever experts lie|on ssd}",
            "{quality|accuracy} {on|with} {ssd|offloading|disk}",
        ),
    ),
)

TIERS: Final = (
    Intent(
        name="tiers",
        answer="There are three tiers, fastest first: VRAM on the GPU, RAM of the host, and SSD.",
        names=(
            "a tier",
            "tiers",
            "the tiers",
            "memory tiers",
            "the memory tiers",
            "the memory hierarchy",
        ),
        questions=(
            "{which|what|how many} {tiers|memory tiers|levels|kinds of memory|storage tiers} {are "
            "there|does it use|does moerun use|exist|are used}",
            "where can {tensors|weights|experts} {lie|live|go|be placed|be stored}",
            "{list|name} {the|all} {tiers|memory tiers}",
            "{which|what} tier is {fastest|slowest|the fastest|the slowest}",
            "{what is|what's} the order of {tiers|the tiers|memory}",
            "how many {levels|kinds|layers|sorts} of memory {does it know|are there|does moerun "
            "use|do you know}",
            "{what|which} {places|memories|kinds of storage} {can|does|could} {weights|it|"
            "moerun} use",
            "vram, ram, ssd {?|: what is the order|meaning}",
            "what comes after {vram|ram}",
            "what are the {three|3} {kinds of memory|memories|levels|tiers}",
            "{kinds|types|levels} of memory {you talk about|in moerun|}",
        ),
    ),
    Intent(
        name="vram",
        answer="VRAM is the memory of a graphics card: the fastest tier, given first to dense "
        "weights and the KV cache.",
        names=("vram", "gpu memory", "video memory", "graphics memory", "the vram"),
        questions=(
            "what is {vram|gpu memory} used for",
            "what {goes|is kept|is put|is placed} {in|into|on} {vram|the gpu|gpu memory}",
            "what {lies|runs|should be} {on the gpu|in vram}",
            "what should {be|lie} in {vram|gpu memory}",
            "what is so {good|special} about {vram|gpu memory}",
        ),
    ),
    Intent(
        name="ram",
        answer="RAM is the host's main memory: the middle tier, where experts go that find no room "
        "in VRAM.",
        names=("ram", "system memory", "main memory", "host memory", "the ram"),
        questions=(
            "what is ram used for",
            "what {goes|is kept|is put|is placed} {in|into} {ram|main memory|host memory}",
            "{which|what} experts {lie|go|are|stay} in ram",
            "what is the {middle|second} tier",
        ),
    ),
    Intent(
        name="ssd",
        answer="SSD is the slowest tier: experts that fit neither in VRAM nor in RAM stay in the "
        "file and are read when needed.",
        names=("the ssd tier", "ssd", "the ssd", "the disk tier", "nvme"),
        questions=(
            "what is {the |}ssd used for",
            "what {goes|stays|is left|remains|lies} on {the |}{ssd|disk|drive}",
            "{which|what} experts {lie|go|are|stay|remain} on {the |}{ssd|disk}",
            "what happens {with|to} {the rest|what does not fit in ram|the remaining "
            "experts|experts that do not fit}",
            "{can|does} {it|moerun} {use|run from|read from} {my|the|an} {ssd|disk|nvme}",
            "what {ends up|lands|is kept|will be} on {the |}{hard disk|ssd|disk|hard drive|nvme}",
            "{experts|weights|tensors} on {the |}{ssd|disk}",
            "where do the {remaining|leftover|other} experts {go|lie|end up}",
            "{is|does} {the |}{disk|ssd} {used|read} {while it runs|during generation|}",
            "{and |}{the stuff|things|what|weights} that {doesn't|don't|does not} fit in {ram|"
            "memory} {go|goes|lie|lies|end up} where",
            "what about {weights|experts} beyond ram",
        ),
    ),
    Intent(
        name="placement_order",
        answer="Dense weights and the KV cache go to VRAM first, then experts, whole layers before "
        "parts of one; the rest goes to RAM, then SSD.",
        names=(
            "the placement order",
            "the placement",
            "how the planner works",
            "the planner",
            "the order of placement",
        ),
        questions=(
            "what {goes|is placed|is put} {to|into|in} vram first",
            "what is placed first",
            "how {does moerun|does it|does the planner} {decide|choose|place|distribute|split} "
            "{tensors|what goes where|where tensors go|the model|weights|experts|the layers}",
            "in {what|which} order {are|does it place} {tensors|weights|things} {placed|}",
            "{which|what} {tensors|weights|parts} {come|go} first",
            "how {are|is} {experts|the model|tensors} {distributed|divided|spread|split} {|over "
            "the tiers|over memory|between gpu and cpu|across devices}",
            "{what|who} gets {the |}{fast|fastest|best} memory {first|}",
            "what has priority {in vram|on the gpu|for the gpu|for vram}",
            "what is the {strategy|logic|rule|algorithm} {behind|of|for} {placement|the "
            "placement|placing tensors}",
            "how {do you|does it|does moerun} {fill|use|share out} the {vram|gpu|gpu memory}",
            "{the |}{sequence|order} in which {memory|vram|each tier} {gets|is} filled",
            "{who|what} {comes|is} first in {vram|memory|line}",
        ),
    ),
    Intent(
        name="kv_first",
        answer="Because moving the KV cache to slower memory was measured 13 to 22 times worse "
        "than moving weights there.",
        questions=(
            "why {does|must|should} the kv {cache |}{go|be placed|come|stay} {first|in vram|to vram"
            " first|on the gpu}",
            "why {is|not put|not move} the kv cache {kept in vram|placed first|to ram|in ram|on the"
            " gpu|so important}",
            "{can|should} the kv {cache |}{lie|be placed|spill|go|be put} {in ram|to ram|into "
            "slower memory}",
            "why {do you|does moerun} {prefer|favour} the kv cache {over experts|over weights|}",
            "why {not|don't you} {leave|put|keep|store} the kv cache {in ram|in system memory|on "
            "the cpu|somewhere slower}",
            "how bad is {a |}{kv cache in ram|kv in ram|spilling the kv cache}",
        ),
    ),
    Intent(
        name="several_gpus",
        answer="Several GPUs are used together: the planner fills them in turn and keeps the plan "
        "that leaves least on the CPU.",
        names=("multi gpu", "several gpus", "multiple gpus"),
        questions=(
            "{can|does|will} {it|moerun} {use|support|handle|work with|combine} {two|several|"
            "multiple|2|three|all my|many|more than one} {gpus|gpu|graphics cards|cards}",
            "{i have|there are|what if i have|what about} {two|several|2|three|3|multiple} {gpus|"
            "graphics cards|cards}",
            "{is|are} {multi gpu|two gpus|multiple gpus|several cards} {supported|possible|used}",
            "how {is a model|are layers|are models} split {over|across|between} {gpus|two gpus|"
            "cards}",
            "my {pc|workstation|server|machine} has {two|2|four|several} {3090s|gpus|4090s|cards|"
            "graphics cards}, {are both used|does that work|will it use both|is that used}",
            "{are|will} {both|all} {of my |my |}{gpus|cards} {be |}used",
            "{how|does it work} with {two|several} {gpus|cards}",
            "{got|i have|with} {a pair of|two|2|three|a couple of} {4090s|3090s|gpus|cards}{, "
            "can both help|, does that help|, are all used|}",
            "{both|all|two} {gpus|cards} {together|at once|in parallel}",
        ),
    ),
    Intent(
        name="no_gpu",
        answer="No GPU is needed: without one, moerun places the model in RAM and on SSD and "
        "computes on the CPU.",
        names=("cpu only", "running without a gpu"),
        questions=(
            "{do i need|must i have|is it necessary to have|does it need|does moerun need|does it "
            "require} {a gpu|a graphics card|an nvidia card|cuda|a video card}",
            "{can|does|will} {it|moerun|this} {work|run} {without|with no} {a gpu|gpu|a graphics "
            "card|cuda|an nvidia card}",
            "{i have|there is|what if i have|what if there is} no {gpu|graphics card|nvidia card}",
            "{can i|is it possible to} {run it|run moerun|use it} {on|with} {a cpu|the cpu|just a "
            "cpu|a cpu only machine|cpu only}",
            "is a {gpu|graphics card} {required|needed|necessary|mandatory|optional}",
            "what happens {without a gpu|on a machine without a gpu|when there is no gpu}",
            "{i've got|i have|there's|my pc has|my laptop has} {no|only integrated|not a single} "
            "{nvidia card|gpu|graphics|graphics card} {here|in here|}, {still ok|does it work|is "
            "that a problem|will it run|can i use it}",
            "{just|only} {a cpu|cpu|the processor} {here|in my machine|available}, {ok|does that "
            "work|enough|is it enough}",
            "{must|should} i buy a {gpu|graphics card}",
            "is a {graphics card|gpu} {mandatory|a must|compulsory}",
            "{gpu|graphics card} {mandatory|required|optional|necessary}",
            "{without|lacking} {a gpu|a graphics card|graphics}",
        ),
    ),
    Intent(
        name="unified_memory",
        answer="Devices that share host memory, such as Apple chips and integrated GPUs, are "
        "planned as one pool with RAM.",
        names=("unified memory", "shared memory", "an integrated gpu", "apple silicon"),
        questions=(
            "how {does it|does moerun} {handle|treat|deal with|work with} {unified memory|apple "
            "silicon|integrated gpus|a macbook|shared memory}",
            "{what about|does it know} {apple silicon|unified memory|an m3|an m2 mac|integrated "
            "graphics}",
            "{are|is} {vram and ram|the gpu memory} {the same|shared|one pool} on {a mac|apple|"
            "integrated gpus}",
            "{my|a} {mac|macbook|m1|m3} has {unified|shared} memory",
            "is {ram|memory} counted twice on {a mac|apple silicon|an integrated gpu}",
        ),
    ),
    Intent(
        name="gpu_kinds",
        answer="GPUs are reached through CUDA, Vulkan or Metal, whichever the engine was built "
        "with.",
        questions=(
            "{which|what} {gpus|graphics cards|cards} {are supported|does it support|work|can i "
            "use|does moerun support}",
            "does {it|moerun} {support|work with|run on|use} {amd|nvidia|intel|radeon|geforce|arc|"
            "rtx 4090} {gpus|cards|}",
            "{is|are} {amd|nvidia|intel|radeon|my amd card|my radeon} {supported|ok|usable}",
            "{can i|may i} use {an amd|a radeon|an intel|an nvidia|a geforce} {gpu|card}",
            "i {have|own|use} {an amd|a radeon|an intel arc|a geforce|an nvidia|a rtx} {card|gpu|"
            "}, {will it work|is it supported|does it work|ok}",
            "{rocm|cuda|vulkan|metal} {supported|support}",
            "is it only for nvidia",
        ),
    ),
    Intent(
        name="slow",
        answer="Experts on SSD must be read before they compute, so more RAM, more VRAM or a "
        "smaller quantization makes it faster.",
        questions=(
            "why is {it|moerun|the model|generation|the answer} {so |very |}slow",
            "{it is|moerun is|the model is|answers are} {too |so |very |really |}slow",
            "{how can i|how do i|can i} {make it faster|speed it up|get more speed|get more tokens "
            "per second|make moerun faster|improve performance|speed up generation}",
            "{what|which things} {makes|make|slows|slow} {it|moerun|the model} {fast|slow|faster|"
            "down}",
            "how fast {is it|is moerun|will it be|does it run}",
            "it {generates|answers|writes|types|responds|runs} {so |very |too |quite }{slowly|"
            "slow}, {any tips|what can i do|why|help|can i fix it}",
            "{any|some} {tips|advice|tricks|ideas} {for|to get} {more speed|better speed|faster "
            "answers}",
            "why does it take {so long|forever|ages|minutes}",
            "{only|just} {one|2|0.5|a few} tokens per second",
            "what {limits|determines|decides} the speed",
            "{generation|it|output|the answer} {crawls|is a crawl|takes ages|drags|is "
            "sluggish}{, what can be done|}",
            "{performance|speed} {is bad|is poor|tips|tuning}",
            "{low|bad} {speed|throughput|tokens per second}",
        ),
    ),
)

COMMANDS: Final = (
    Intent(
        name="commands",
        answer="The verbs are run, plan, stat, doctor and config; moerun --help lists them with "
        "their flags.",
        names=("the commands", "the verbs", "moerun --help", "the help text", "--help"),
        tasks=(
            "{see|list|show|get|find} {the|all} {commands|verbs|flags|options|subcommands}",
            "{see|get|read|open} {the help|help|the help text|the manual|the documentation}",
        ),
        questions=(
            "{which|what} {commands|verbs|subcommands} {are there|exist|does it have|does moerun "
            "have|do i have|can i use}",
            "{list|name} {the|all} {commands|verbs|subcommands|options}",
            "{what can i type|what can i do} {|in the terminal|on the command line|with moerun}",
            "{name|tell me|list} {every|each|all the} {subcommand|command|verb} {there is|you "
            "have|}",
            "what {subcommands|verbs|commands} {does moerun know|do you know|can i type}",
            "{usage|synopsis|cheat sheet|command overview}",
            "how is moerun used",
            "{which|what} {verbs|words|commands} can i {put|type|write} after moerun",
            "{command line|cli} {overview|reference|usage}",
        ),
    ),
    Intent(
        name="run",
        answer='Type moerun run MODEL "prompt": it plans, loads the model and streams the answer.',
        names=("moerun run", "the run command", "the run verb", "run"),
        tasks=(
            "{run|start|execute|launch|use|load} {a model|the model|my model|a gguf|an llm|a "
            "gguf file|it|moerun}",
            "{ask|prompt|query} {a model|the model|my model} {|a question|something|once}",
            "{send|give|pass} {a prompt|a question|one prompt|my prompt} {to a model|to the "
            "model|to moerun}",
            "{get|see} {an answer|a reply|an answer from a model|output from the model}",
            "{generate|produce} {text|an answer|some text|a completion}",
        ),
        questions=(
            "{what is|what's} the command {to run|for running|to start} {a model|models|a prompt}",
            "{which|what} command {runs|starts|loads} {a model|the model|models}",
            "run {a model|my model|a prompt|one prompt|model}",
            "running {a model|models|a prompt}",
            "{give me|what is|show me} the {command line|line|command} {to load a model|for "
            "loading a model|to ask a model|that starts a model|to query a model}",
            "i {have|downloaded|got} {a model|a gguf|the file}, {now what|what next|how do i use "
            "it|how do i ask it something}",
            "{ask|pose} {one|a single|a} question {to the model|to a model|and get an answer}",
            "{one-shot|single} {prompt|question|answer}",
            "how does {one|a user} {get|make} {a model|the model|it} {answer|to answer|reply} {|"
            "a question|a prompt}",
            "what do i {type|enter|write} {to get an answer|to ask something|for a single answer|"
            "to run it}",
            "what must i {enter|type} {for|to get} {one|an} answer {from|out of} {my gguf|my "
            "model|a model}",
            "{command|syntax} {for|of} {a prompt|running|one question}",
            "{make|let} {my gguf|my model|a model} {answer|talk|reply|say something}",
        ),
    ),
    Intent(
        name="conversation",
        answer="Type moerun run MODEL without a prompt on a terminal, and a conversation begins.",
        names=("a conversation", "interactive mode", "chat mode", "the chat", "chatting"),
        tasks=(
            "{chat|talk|converse|speak} {with|to} {a model|the model|my model|it|an llm}",
            "{start|begin|open|have} {a conversation|a chat|an interactive session|a dialogue|a "
            "chat session|a dialog}",
            "{ask|send} {several|many|more|follow-up} {questions|prompts} {in a row|one after "
            "another|}",
        ),
        questions=(
            "{is there|does it have|does moerun have} {a chat|a chat mode|an interactive mode|a "
            "conversation mode|a repl}",
            "what happens {without|if i give no|when i give no|if i leave out the} prompt",
            "start {a chat|chatting|a conversation}",
            "{chat|conversation|interactive} mode",
            "i {would rather|want to|prefer to} have a {dialogue|conversation|chat} {than a "
            "single answer|with it|}",
            "can {i|we} {have a|hold a} {conversation|dialogue|longer chat} {|in the terminal|"
            "here|with it}",
            "chat {in|on|from} the {shell|console}",
            "{ask|send} {another|a second|the next} {question|prompt} {after the first|in the "
            "same session|}",
            "does it remember {what i said|the previous question|earlier questions}",
            "{i'd like|i want} to {keep|go on} asking {it |}{things|questions|more} {|one after "
            "the other|in one go}",
            "{dialogue|dialog|interactive|chat} {session|with memory|in the terminal}",
            "{a|have a} long {chat|talk} with {it|the model}",
        ),
    ),
    Intent(
        name="pipe",
        answer="Pipe it in: text from stdin is put before the prompt, as in cat notes.txt | moerun "
        'run MODEL "Summarize this".',
        names=("stdin", "piping", "standard input", "a pipe"),
        tasks=(
            "{pipe|send|pass|give|redirect} {text|a file|a document|input|my notes|data} {to|"
            "into} {the model|moerun|it|moerun run}",
            "{summarize|process|read|ask about|translate|use} {a file|a text file|a document|"
            "the content of a file|a log file}",
            "{use|read from|combine} {stdin|standard input|a pipe|pipes|shell pipes}",
        ),
        questions=(
            "{does it|does moerun|can it|can moerun} {read|accept|support|take} {stdin|standard "
            "input|pipes|piped text|a file as input|input from a pipe}",
            "where does {stdin|piped text|standard input} go",
            "pipe a file",
            "can {it|moerun|i} {take|read|get|use} {input|text|data} from {another|a different|"
            "some other} {program|command|tool} {|through a pipe}",
            "{put|insert|include} {a file|a document|the content of a file|text from a file|my "
            "notes} {into it|into the prompt|to the model|as prompt}",
            "{give|hand|attach} {it|the model} a {file|document|text file} {to read|}",
            "use it in a shell {pipeline|pipe}",
            "cat {file|notes.txt|log.txt} | moerun",
            "could i {send|give|show} it the {contents|content|text} of {my |a }{log file|file|"
            "document|csv}",
            "{my|a} {log|csv|text} file as {input|prompt}",
            "{input|text} from {stdin|a file|another command}",
        ),
    ),
    Intent(
        name="dry_run",
        answer="Add --dry-run to moerun run: it stops after the plan, before anything is loaded.",
        names=("--dry-run", "a dry run", "dry run"),
        tasks=(
            "{run|do|make} a dry run",
            "{stop|end} {after|before} {the plan|loading}",
            "use {--dry-run|dry run}",
        ),
        questions=("what does {--dry-run|dry run|run --dry-run} do",),
    ),
    Intent(
        name="verbose",
        answer="Add --verbose to moerun run: it shows the engine's reported buffer sizes beside "
        "the plan.",
        names=("--verbose", "verbose mode", "the verbose flag", "verbose output"),
        tasks=(
            "{see|show|get|print} {more details|the buffer sizes|reported buffers|more output|"
            "engine details|what the engine reports} {|while loading|when running}",
            "{make|get} {it|moerun|run} {more verbose|verbose}",
        ),
        questions=("what does {--verbose|verbose} {do|show|print}",),
    ),
    Intent(
        name="plan",
        answer="Type moerun plan MODEL: it reads only the header and shows where every tensor "
        "would go.",
        names=("moerun plan", "the plan command", "the plan verb", "a plan", "the plan", "plan"),
        tasks=(
            "{see|show|view|check|inspect|preview|look at|get|make|print} {the plan|a plan|the "
            "placement|the layout|a preview|my plan|the memory plan}",
            "{see|find out|know|check|learn|preview} where {tensors|layers|experts|the weights|"
            "things|the tensors} {go|would go|are placed|will be placed|will go|would be put}",
            "{check|find out|know|test|see|predict} {if|whether} {a model|my model|it|the model}"
            " {fits|will fit|would fit|runs|can run}",
            "{plan|preview} {a model|the placement|placement|before running}",
        ),
        questions=(
            "{which|what} command {plans|shows the plan|makes a plan|shows the placement}",
            "{will|does|would} {my|a|this|the} {model|gguf|file} fit {|in memory|on my machine|here"
            "|in my ram|on my gpu}",
            "does plan {load|read|need} the {model|weights|whole file}",
            "plan {a model|my model|the placement}",
            "show {the|me the|me a} plan",
            "how do i {find out|know|learn|tell} {ahead of time|before loading|beforehand|in "
            "advance|before i load it} {if|whether} {it|a model|the model} {will fit|fits|runs}",
            "{where|which device} {will|would|do|does} {the layers|each layer|tensors|the "
            "experts|my model} {go|end up|land|be put|be placed}",
            "{show|tell} me {where|which} {tensors|layers|experts} {would go|will go|go|end up}",
            "see the {layout|placement|distribution} {before|without} {loading|running|starting} "
            "{anything|the model|it|}",
            "{i'd like|i want|let me} {to |}{preview|see} the {placement|layout} {|first|before "
            "i start}",
            "a {glance|look} at the {placement|plan|layout} {ahead of time|first|before}",
            "{would|will} {it|that model|this gguf} {be placed|fit|go} {well|completely in vram|"
            "in memory}",
        ),
    ),
    Intent(
        name="plan_all",
        answer="Type moerun plan without a model: it prints one row for each model at hand.",
        tasks=(
            "plan {all|all my|several|every|all the} {models|model|files}",
            "{see|list|compare|show} {all|all my|how all|every} {models|plans} {at once|at "
            "hand|together|and their placement}",
            "{compare|list} {the plans of|placements of|how} {my models|all models|several models}",
        ),
        questions=(
            "what does {plan|moerun plan} {do|show|print} without {a model|model|a name|arguments}",
            "which of my models {fit|would fit|fits|run here}",
            "{plan|moerun plan} {without|with no} {a model|model|arguments}",
            "which {models|files} {here|i have|on this machine} {can|could|would} {run|fit|work}",
            "{overview|table|list} of {all|my} models {and how they fit|}",
        ),
    ),
    Intent(
        name="plan_vram",
        answer="Pass --vram, as in moerun plan MODEL --vram 8G: it plans for a GPU of that size, "
        "even without one.",
        names=("--vram", "the vram flag", "--vram 8G", "plan --vram"),
        tasks=(
            "plan for {a gpu|another gpu|a bigger gpu|a different graphics card|8 gb of vram|a "
            "12 gb gpu|a card i do not have|less vram|more vram|an 8g card}",
            "{see|check|find out|test|try} {what|how it|how a model} {would happen|would look|"
            "would fit|runs} {on|with} {another gpu|a larger gpu|8 gb vram|more vram|a 16 gb "
            "card|12 gb of vram}",
            "{simulate|pretend to have|imagine|assume|emulate} {a gpu|another gpu|a bigger card|"
            "an 8 gb card|more vram|a graphics card}",
            "{set|choose|give} the {vram|gpu memory|gpu size} {of a plan|for a plan|for plan}",
        ),
        questions=(
            "what {does|is} {--vram|the vram flag|plan --vram} {do|for|mean}",
            "what if i {had|buy|bought|get|got} {a bigger gpu|more vram|another graphics card|a "
            "12 gb card}",
            "{would|will|does} {it|the model|a model} fit {on|in|into} {8|12|16|48} {gb|g|gigabytes"
            "|gb of vram|gb vram}",
            "pretend {my gpu had|i had|there was|that i have} {12|16|24|8|48} {gb|gigabytes|"
            "gigs} {|of vram|of gpu memory}",
            "{is|would} a {12|16|24|8} {gb|gig} {card|gpu} {be |}{enough|sufficient|large enough}",
            "{which|what} {gpu|graphics card} {should i|do i need to|must i} buy",
            "simulate {8|12|16|48} {gb|gigabytes} {of vram|of graphics memory|}",
            "act as if {i had|there was} a {gpu|bigger gpu|24 gb gpu}",
            "{imagine|suppose|assume|say} {a card|a gpu|i had a card} {with|of} {16|12|8|48} {gb|"
            "gigs}{, what would the plan be|, what then|}",
            "{plan|planning} {with|for} {a hypothetical|a future|an imaginary|a bigger} {gpu|card}",
        ),
    ),
    Intent(
        name="plan_ram",
        answer="Pass --ram, as in moerun plan MODEL --ram 32G: it plans with that much host "
        "memory.",
        names=("--ram", "the ram flag", "--ram 32G", "plan --ram"),
        tasks=(
            "plan {for|with} {32 gb of ram|less ram|more ram|another amount of ram|64 gb ram|"
            "more system memory}",
            "{see|check|find out} what {happens|would happen} with {more ram|less ram|64 gb of "
            "ram|16 gb ram}",
            "{set|choose|give} the {ram|ram size|host memory} {of a plan|for a plan|for plan}",
        ),
        questions=(
            "what {does|is} {--ram|the ram flag|plan --ram} {do|for|mean}",
            "what if i {had|buy|bought|get|got|added} more {ram|system memory}",
            "{what would|would anything|what does} change {if i had|with} {64|128|32|16} {gb|"
            "gigs|gigabytes} {of ram|of memory|ram}",
            "pretend {i had|there was|my pc had} {32|64|128} {gb|gigs} {of ram|of system memory|"
            "ram}",
            "is {16|32|64} gb {of ram |ram |}{enough|sufficient}",
            "what would {64 gb|32 gb|a second memory stick|more memory|twice the ram} {in total |"
            "}{bring|change|do|help}",
            "{imagine|suppose|assume|say} {32|64|128} {gb|gigs} of ram",
        ),
    ),
    Intent(
        name="plan_two_gpus",
        answer="Give one size for each GPU, separated by a comma: moerun plan MODEL --vram 8G,24G.",
        tasks=(
            "plan for {two|several|2|multiple|three|different} {gpus|graphics cards|cards|"
            "gpu sizes}",
            "{give|pass|write|set} {--vram|the vram|sizes} for {two|several|2|multiple} {gpus|"
            "cards}",
            "{simulate|pretend to have|imagine|assume|emulate} {two|several|2} {gpus|cards}",
        ),
        questions=(
            "what does --vram 8G,24G {mean|do}",
            "{can|does} --vram {take|accept|have} {two|several|more} {sizes|values|gpus}",
            "pretend {i had|there were} two {gpus|cards}",
            "{sizes|vram} {of|for} {both|two|several} {gpus|cards}",
        ),
    ),
    Intent(
        name="plan_machine",
        answer="Save it there with moerun doctor --json, then pass the file: moerun plan MODEL "
        "--machine FILE.",
        names=("--machine", "a machine file", "the machine flag", "plan --machine"),
        tasks=(
            "plan for {another|a different|some other|my other|a remote|someone else's} "
            "{machine|computer|pc|server|host|box}",
            "{use|load|read|give|pass|make|write} a machine {file|description|json}",
            "{plan|plan a model} {here for|for} {the server|my server|a friend's pc|my home pc|a"
            " workstation}",
        ),
        questions=(
            "what {does|is} {--machine|the machine flag|plan --machine} {do|for|mean}",
            "{can|does} {it|moerun} plan for {another|a different} {machine|computer}",
            "plan {for|on behalf of} {my|the|a} {server|desktop|other pc|workstation|big "
            "machine} {while|from|without leaving} {my laptop|i am at my laptop|here|i sit here}",
            "{can i|how do i} {check|see|plan|test} {on|from} {this|my} {laptop|pc} {how|whether|"
            "what} {a model|it} {runs|would run|fits} {on my server|elsewhere|on another machine|"
            "somewhere else}",
            "take the {description|facts|hardware} of {another|a different|some other} {machine|"
            "computer}",
            "plan with the {hardware|specs|description} of {my workmate's|my friend's|another|a "
            "different} {computer|machine|pc}",
            "{hardware|specs} of another {machine|computer|pc}",
            "{my|a} {friend's|colleague's|workmate's} {computer|machine|pc}",
        ),
    ),
    Intent(
        name="plan_explain",
        answer="Add --explain to moerun plan: it lists every decision with its reason.",
        names=("--explain", "the explain flag", "plan --explain", "the explanation of a plan"),
        tasks=(
            "{see|get|read|show|understand|list|know} {the reasons|reasons|the decisions|why|the "
            "reasoning|each decision|an explanation} {|of a plan|for the plan|behind the plan|"
            "of the planner|for each choice}",
            "{find out|see} why {a tensor|a layer|an expert} {is|goes|went|was put} {there|on "
            "the cpu|in ram|to ssd}",
        ),
        questions=(
            "what {does|is} {--explain|the explain flag|plan --explain} {do|for|mean|print}",
            "why {is|was|did|does} {a tensor|this tensor|my layer|an expert|the plan|a layer} "
            "{placed there|on the cpu|like that|put there|look like this|go to ram}",
            "{explain|justify} {your plan|the decisions|the choices}",
            "{can|does} {it|moerun|plan} {explain|justify} {itself|the plan|its choices|its "
            "decisions}",
            "why did {that|this|the|my} {layer|tensor|expert} {land|end up|go|get placed} {on "
            "the cpu|in ram|on ssd|there}",
            "{what|which} {reasons|reason|logic} {did|does} the {planner|plan} {have|give|follow}",
            "why {did|does|has} {it|the planner|moerun} {choose|decide|pick|do|chosen} {this|"
            "that|so|this way|like this|these places}",
            "{i want|give me|show me} {the |}{reasons|reasoning|explanations} {for each decision|"
            "for the choices|}",
            "{make|let} {the planner|it} justify itself",
            "the plan {surprises me|looks odd|is strange|puzzles me}{, why|, what's the "
            "rationale|}",
            "{rationale|justification|grounds|reasoning} {of|for|behind} {the plan|a decision|"
            "each decision}",
            "why {exactly |}{so|like this|this placement|these decisions}",
        ),
    ),
    Intent(
        name="plan_view",
        answer="It shows a bar for each device, a strip of all layers coloured by tier, the "
        "context, the load mode and what stays on SSD.",
        tasks=("read {the plan output|the output of plan|a plan view|the bars}",),
        questions=(
            "what {does the plan|does moerun plan|does plan|does a plan} {show|contain|print|list|"
            "tell me|display}",
            "what {are|do} the {bars|colours|colors|strip|strips} {|in the plan} {mean|show|stand "
            "for}",
            "what is {in|on} the plan {output|view|screen}",
        ),
    ),
    Intent(
        name="json",
        answer="Add --json: run, plan, stat and doctor then print one JSON document with a schema "
        "number.",
        names=("--json", "json output", "the json flag", "the json document", "json mode"),
        tasks=(
            "{get|print|produce|have|show|see|export} {json|json output|the output as json|a "
            "json document|results as json|structured output|the plan as json|stats as json}",
            "{use|parse|process|read} {the output|moerun's output|results} in {a script|a "
            "program|python|another program}",
            "{script|automate} {moerun|it}",
        ),
        questions=(
            "what {does|is} {--json|the json flag} {do|for|mean|print}",
            "{is there|does it have|does it support|does moerun support} {json|json output|a json "
            "flag|an output for scripts|structured output|an output for programs}",
            "which commands {have|support|know} {--json|json}",
            "{can|does} {plan|stat|run|doctor|it} {print|write|output|give} json",
            "my {script|program|tool|code} {wants|needs|expects|reads} {the plan |the output |"
            "}{in|as} {json|a json document|structured form}",
            "pipe {the plan|stat|results} into jq",
            "{output|print} {for|to} {scripts|programs|other tools|machines}",
            "{structured|json} output {please|for a dashboard|for my program|}",
            "{a|my} {dashboard|script|program|monitoring tool} {needs|wants|reads} {the data|"
            "json|the numbers}",
        ),
    ),
    Intent(
        name="stat",
        answer="Type moerun stat --memory in another terminal: it shows planned, reported and "
        "observed bytes for each device.",
        names=(
            "moerun stat",
            "stat",
            "the stat command",
            "stat --memory",
            "moerun stat --memory",
            "the stat verb",
        ),
        tasks=(
            "{see|show|check|inspect|measure|view|find out|know} {memory use|the memory "
            "use|how much memory is used|memory usage|the used memory|what memory it uses|how "
            "much ram it uses|how much vram is used|memory consumption}",
            "{see|show|list|check|find} {running models|what is running|which model is running|"
            "the loaded models|active models}",
            "{compare|check} {planned and real|predicted and observed|the plan with real} "
            "{memory|bytes|use|sizes}",
        ),
        questions=(
            "{which|what} command {shows|prints|reports|measures} {memory use|the memory|memory "
            "usage|running models|used memory}",
            "how much {memory|ram|vram} {does it use|does it take|is used|does the model use|is "
            "taken|does my model take|is in use|does it need} {|right now|now|at the moment}",
            "{where is|where does} {my|the|all the} {memory|ram|vram} {gone|go|used}",
            "which model is {running|loaded} {|now|right now}",
            "tell me the memory {consumption|use|footprint|usage} of {the|a} {loaded|running|"
            "active} model",
            "who {uses|takes|eats} {my|all the} {memory|ram|vram}",
            "{memory|ram|vram} {report|statistics|use|usage|footprint|overview}",
            "{was|is} the plan {right|accurate|kept}",
            "what is {loaded|running} {|right now|at the moment}",
            "show the {ram|vram|memory} in use {by the thing that's running|now|by the model|}",
            "{memory|ram|vram} {now|in use|of the running model|taken by the model}",
            "{real|actual|measured|observed} memory {use|bytes}",
        ),
    ),
    Intent(
        name="stat_watch",
        answer="Add --watch: moerun stat --memory --watch renews its table until you stop it.",
        names=("--watch", "the watch flag", "stat --watch", "watch mode"),
        tasks=(
            "{watch|follow|monitor|track|observe} {memory|the memory|memory use|statistics|"
            "stat|memory usage} {|over time|continuously|all the time|in real time|live|while "
            "it runs|permanently}",
            "{keep|have} {stat|the table|the statistics|the view} {updating|updated|open|renewed"
            "|running}",
            "{update|renew|repeat|reload} {stat|the table|the statistics|the numbers} "
            "{automatically|regularly|every second|continuously|constantly}",
        ),
        questions=(
            "what {does|is} {--watch|the watch flag|stat --watch} {do|for|mean}",
            "{does|can} stat {update|refresh|run} {itself|automatically|continuously}",
            "is there {a live view|a watch mode|live monitoring|a continuous view}",
            "{i'd like|i want|can} the {memory table|table|numbers|figures|view|memory numbers|"
            "statistics} to {keep|be} {refreshing|updating|updated|renewed|live}",
            "{live|real time|continuous} {memory|view|numbers|statistics|monitoring}",
            "like top {but |}for {moerun|memory}",
            "keep {the stat display|stat|the memory view} {open|current|open and current|fresh}",
            "{auto|automatic|periodic} {refresh|update} of {stat|memory|the numbers}",
        ),
    ),
    Intent(
        name="stat_empty",
        answer="With nothing running, moerun stat prints an empty list and a hint, and exits "
        "with 0.",
        questions=(
            "what {does stat|does moerun stat} {show|print|do|say} {when nothing runs|when nothing "
            "is running|without a running model|if no model is running|when no model is loaded}",
            "why is {stat|the stat output|the list of stat|moerun stat} empty",
            "stat {shows nothing|is empty|prints nothing|shows an empty list}",
            "{is it an error|does it fail|does stat fail} {when|if} {nothing runs|nothing is "
            "running|no model runs}",
            "stat {doesn't|does not} {list|show|print} anything",
            "why {does|is} {stat|moerun stat} {say|show} {nothing|no models}",
            "no {models|rows} in stat",
        ),
    ),
    Intent(
        name="doctor",
        answer="Type moerun doctor: it shows GPUs, RAM, cores, storage, the engine and the result "
        "of its self-check.",
        names=(
            "moerun doctor",
            "doctor",
            "the doctor command",
            "the doctor verb",
            "the self-check",
            "the self check",
        ),
        tasks=(
            "{check|inspect|examine|test|diagnose|verify} {my machine|the machine|my setup|my "
            "installation|the installation|my computer|the engine|my system|my hardware}",
            "{see|show|list|print} {my hardware|my gpus|what hardware there is|the devices|the "
            "detected gpus|what moerun sees|the found devices|my devices}",
            "{find|debug|diagnose} {problems|a problem|what is wrong|issues|errors} {|with my "
            "setup|with the engine|with the installation}",
            "{know|check|see} {if|whether} {my gpu|the gpu|cuda|my card} is {detected|found|used"
            "|seen|recognized}",
        ),
        questions=(
            "{which|what} command {checks|shows|lists|examines} {my machine|the machine|my hardware"
            "|the gpus|the setup|the devices}",
            "{something|it|moerun} {is wrong|does not work|is broken|isn't working}, what {now|"
            "can i do|should i do}",
            "why is my {gpu|graphics card|card} not {used|found|detected|seen|recognized}",
            "what does doctor {show|do|print|check}",
            "my {graphics card|gpu|card|nvidia card} {doesn't show up|is missing|isn't found|is "
            "not listed|is not there|is ignored}",
            "{is|check that} {my|the} {installation|setup|engine} {ok|fine|healthy|working|"
            "correct}",
            "{tell|show} me {what|which} {hardware|gpus|devices} {you see|there is|i have|was "
            "found|it found}",
            "health check",
            "how much {ram|vram} {do i have|has this machine}",
            "is the engine {ok|working|healthy}",
            "is my {card|gpu|graphics card} {even |}{visible|known} {to moerun|}",
            "{gpu|card} {not detected|detection|visible}",
            "{diagnosis|diagnostics|troubleshooting|check-up}",
        ),
    ),
    Intent(
        name="doctor_json",
        answer="moerun doctor --json writes the description of this machine that moerun plan "
        "--machine reads.",
        names=("doctor --json", "moerun doctor --json", "the json of doctor"),
        tasks=(
            "{save|export|write|store|dump} {the machine|my machine|this machine|a description "
            "of my machine|the hardware description|the machine description}",
            "{create|make|produce} {the file|a file} for {--machine|plan --machine}",
        ),
        questions=(
            "what {does|is} {doctor --json|moerun doctor --json} {do|for|write|print}",
            "where {do i get|does the file come from|comes the file} {|for --machine|for "
            "plan --machine|a machine file from}",
        ),
    ),
    Intent(
        name="config",
        answer="Type moerun config: it shows every setting with its value and where that value "
        "came from.",
        names=("moerun config", "the config command", "the config verb", "config"),
        tasks=(
            "{see|show|list|print|view|check|display} {the settings|my settings|all settings|the "
            "configuration|current settings|the current configuration|my configuration|the "
            "effective settings}",
            "{see|find out|know|check} {where a setting comes from|the origin of a setting|what "
            "is set|which file sets a value|who set a value|which settings are active}",
        ),
        questions=(
            "{which|what} command {shows|lists|prints} {settings|the settings|the "
            "configuration|the config}",
            "what does {config|moerun config} {show|do|print}",
            "{what are|show me} {my|the|the current} settings",
            "what is the {origin|source} of {a setting|a value|this setting}",
            "list {every|each} setting {and|with} {who set it|its origin|its source|where it was "
            "set}",
            "why {is|does} {this|a} setting {have|has} {this|that} value",
            "{what|which} {values|settings} are {in effect|active|in use} {now|}",
            "who {set|changed} {this|a|my} {setting|value|option}",
            "{print|dump} {the|all} {config|settings|effective configuration}",
            "i want to {read|see} the {configuration|settings|values} {that's in force|in force|"
            "in effect}",
            "{effective|active|current} {configuration|settings|values}",
            "{origin|source} of {settings|values|each value}",
        ),
    ),
    Intent(
        name="version",
        answer="Type moerun --version: it shows the versions of moerun and the engine and the "
        "build flags.",
        names=("--version", "the version flag", "the version"),
        tasks=(
            "{see|show|find|check|print|know|get} {the version|my version|which version i have|"
            "the version number|the build flags|the moerun version|the engine version}",
        ),
        questions=(
            "{which|what} version {is this|do i have|of moerun is this|is installed|am i "
            "using|is it}",
            "what does {--version|moerun --version} {show|print}",
            "{which|what} {release|version} {of moerun |}{am i on|is running|do i run|am i "
            "running|have i got}",
            "am i up to date",
        ),
    ),
)

SETTINGS: Final = (
    Intent(
        name="config_files",
        answer="Settings live in moerun/config.yaml in your user config folder and in moerun.yaml "
        "in the current folder.",
        names=(
            "the config file",
            "the configuration file",
            "moerun.yaml",
            "config.yaml",
            "a project file",
            "the settings file",
        ),
        tasks=(
            "{change|edit|set|store|save|keep} {settings|a setting|my settings|the configuration"
            "|options|defaults} {|permanently|for good|in a file|for a project|forever}",
            "{configure|customize} {moerun|it}",
        ),
        questions=(
            "where {is|are|do i find|can i find|lies} the {config file|configuration|settings|"
            "configuration file|config|settings file} {|stored|kept|saved}",
            "{which|what} files {hold|contain|store} {settings|the settings|the configuration}",
            "where {do i|can i|should i} {put|write|store|set} {settings|my settings|options}",
            "in {which|what} file do i {write|put|change|store} {my |}{preferences|settings|"
            "options|defaults}",
            "{where|in which folder} {does|do} {moerun|it} {look for|read|keep|find} {its |the |"
            "}{settings|config|configuration}",
            "the {path|place|location} of {the |}{config|settings|configuration}",
            "{make|keep} a setting {permanent|for all runs|for one project}",
            "{settings|options} {for|of} {one|a single|this} {project|folder} only",
            "where on {disk|my machine|the filesystem} is the {configuration|config} {kept|"
            "stored|}",
            "{config|settings|yaml} {file|location|path|folder}",
        ),
    ),
    Intent(
        name="settings_order",
        answer="Later ones win: defaults, the user's config.yaml, ./moerun.yaml, MOERUN_* "
        "variables, then flags.",
        names=("the order of settings", "settings precedence", "the precedence"),
        questions=(
            "in {which|what} order are settings {read|applied|merged|loaded}",
            "{which|what} {setting|value|file|source|one} {wins|has priority|takes precedence|"
            "counts|is stronger|overrides the others}",
            "{do|does} {flags|a flag|an environment variable|variables|the command line|a project "
            "file} {override|overrule|beat|win over|replace} {the config file|files|the "
            "configuration|settings|config.yaml}",
            "{what|which} has {priority|precedence|the last word}",
            "what {happens|is used} {if|when} {two settings|settings|values} {conflict|differ|"
            "contradict}",
            "does {a|the} {command line |}{flag|option|switch} {beat|override|win against|"
            "overrule} {the |}{yaml|yaml file|config|file|environment}",
            "{what|which} {overrides|beats|overrules} {what|which}",
            "{two|both} {places|files} set {the same|one} {key|setting|value}, {who wins|which "
            "counts|which is used}",
            "{yaml|the file|config.yaml} says one thing and {the command line|a flag|a variable} "
            "another",
            "{priority|precedence|order|rank} of {flags|settings|files|sources}",
        ),
    ),
    Intent(
        name="environment",
        answer="Every setting can be given as an environment variable whose name begins with "
        "MOERUN_.",
        names=(
            "environment variables",
            "MOERUN_ variables",
            "env variables",
            "env vars",
            "the environment variables",
            "MOERUN_*",
        ),
        tasks=(
            "{set|give|use|change} {settings|a setting|options|a value} {by|with|through|in|as} "
            "{environment variables|the environment|an environment variable|env vars|the shell "
            "environment}",
        ),
        questions=(
            "{which|what} {environment variables|env vars|variables} {are there|exist|does "
            "it read|does moerun read|can i set|does it know}",
            "{can i|does it|does moerun} {use|read|support} {environment variables|env vars|"
            "the environment}",
            "{can|how can} settings be {passed|given|set} {through|by|via|in} the environment",
            "{export|set} MOERUN_{RAM_LIMIT|CTX|VRAM_LIMIT}",
            "settings {without a file|in docker|in a container|from the shell}",
            "can i {configure|set up} it {using|with|through} variables {in my shell|}",
            "{shell|environment|env} variables",
        ),
    ),
    Intent(
        name="no_color",
        answer="Set the environment variable NO_COLOR, and the output has no colours.",
        names=("NO_COLOR", "no color", "coloured output", "colors"),
        tasks=(
            "{turn off|disable|remove|switch off|get rid of|avoid|stop|suppress} {colors|"
            "colours|the colors|coloured output|colored output|color|the colours}",
            "{get|have|print} {plain|monochrome|black and white|uncoloured} {output|text}",
        ),
        questions=(
            "{does it|does moerun|do you} {honour|respect|support|know} no_color",
            "what {does|is} no_color {do|}",
            "{i do not|i don't} {want|like|need} {colors|colours|coloured output}",
            "{no|without|output without} {colors|colours}",
            "i {hate|dislike|can't stand|don't like} {colourful|colored|coloured|colorful} "
            "{terminals|output|text}",
            "no {colors|colours} thanks",
            "{make|have} the output {plain|without colors|black and white|uncoloured}",
            "my {terminal|log} {shows|has|is full of} {escape codes|color codes|strange codes}",
            "{monochrome|plain|uncoloured|black and white} output{, how|}",
            "{turn|switch} {the |}{colours|colors} off",
        ),
    ),
    Intent(
        name="memory_strategy",
        answer="memory_strategy holds hierarchy, allocation_policy, vram_limit, ram_limit, "
        "expert_residency, ssd_cache_path, max_swap_size, preload_experts, streaming and pins.",
        names=(
            "memory_strategy",
            "the memory strategy",
            "the strategy",
            "ssd_cache_path",
            "max_swap_size",
            "the memory_strategy block",
            "a memory strategy",
        ),
        tasks=(
            "{write|set|define|change} {a memory strategy|the strategy|memory_strategy|the "
            "memory strategy}",
        ),
        questions=(
            "{which|what} {keys|settings|options|values} {does memory_strategy have|are in "
            "memory_strategy|does the strategy have|belong to memory_strategy}",
            "{what can i|what may i} {set|write|put} {in|under|into} memory_strategy",
            "{list|name} {the|all} keys of {memory_strategy|the strategy}",
            "what is in {the |a |}memory strategy",
            "{which|what} {keys|settings} {control|govern} memory",
        ),
    ),
    Intent(
        name="hierarchy",
        answer="hierarchy lists the tiers that may be used, in the order vram, ram, ssd; a tier "
        "left out is not used.",
        names=("hierarchy", "the hierarchy key", "the hierarchy setting", "the hierarchy"),
        tasks=(
            "{leave out|exclude|forbid|disable|skip|avoid|ban} {a tier|the ssd|the ssd tier|"
            "vram|a memory tier|the gpu|the disk}",
            "{choose|set|select} {the tiers|which tiers are used|allowed tiers}",
            "{use|keep everything in} {only ram|only vram|just ram|ram only|no ssd}",
        ),
        questions=(
            "what does hierarchy {do|mean|list}",
            "what is the hierarchy {for|in the config|key|in memory_strategy}",
            "can i {turn off|switch off|disable} {the ssd|a tier|the ssd tier|vram}",
            "{don't|do not|never} {use|touch|read from} {the |my |}{disk|ssd|gpu|vram} {at all|"
            "}{, please|}",
            "only {use|allow} {ram|vram|vram and ram}",
            "{which|what} {key|setting} {turns off|excludes|forbids} {the ssd|a tier|the disk}",
            "{without|no} {ssd|disk|ssd tier}",
            "{never|don't} let it {touch|use} {my|the} {ssd|disk|drive}",
            "{forbid|prohibit|ban} {the |}{ssd|disk|vram}",
            "only {ram|vram} {please|allowed}",
        ),
    ),
    Intent(
        name="allocation_policy",
        answer="adaptive follows memory pressure and may move experts while running; conservative "
        "keeps larger margins and moves nothing after loading.",
        names=(
            "allocation_policy",
            "the allocation policy",
            "adaptive",
            "conservative",
            "the adaptive policy",
            "the conservative policy",
            "adaptive mode",
            "conservative mode",
        ),
        tasks=(
            "{keep|get|have|leave} {larger|bigger|more} {margins|reserve|spare memory}",
            "{choose|set|select|change} {the policy|an allocation policy|a policy}",
        ),
        questions=(
            "what {does|do} {adaptive|conservative|allocation_policy} {mean|do}",
            "{should i|when do i} {use|choose|take} {adaptive|conservative}",
            "{which|what} {policies|allocation policies} {are there|exist|can i choose}",
            "{adaptive|conservative} {or|vs|versus} {adaptive|conservative}",
            "how {is|does} adaptive {different from|differ from|compare with} conservative",
            "which policy {leaves|has|keeps} {more|larger} {safety |}{margin|margins|reserve|room}",
            "{what is|what's|explain|tell me} the {difference|distinction} between {adaptive and|"
            "conservative and} {conservative|adaptive}",
            "adaptive {compared to|against|or} conservative",
            "{moves|move} experts while {running|it runs|the model runs}",
            "{conservative|adaptive} {policy|mode|setting}{: what's that|, what is it|}",
            "{cautious|careful|safer} {policy|allocation|mode}",
        ),
    ),
    Intent(
        name="vram_limit",
        answer="Set vram_limit to auto, a size such as 8G, a share such as 80%, or one value per "
        "GPU: it bounds all that moerun takes on a device.",
        names=("vram_limit", "the vram limit", "a vram limit", "the gpu memory limit"),
        tasks=(
            "{limit|cap|restrict|bound|reduce} {vram|the vram|gpu memory|vram use|the gpu "
            "memory|memory on the gpu|graphics memory}",
            "{use|take|give it} {only|at most|no more than|just} {8 gb of vram|half of the vram|"
            "80% of vram|6 gb vram|half the gpu|a part of the gpu}",
            "{keep|reserve|leave} {vram|gpu memory|some vram|space on the gpu|room on the gpu} "
            "{free|for a game|for other things|for my desktop|for the desktop}",
        ),
        questions=(
            "what {does|is} vram_limit {do|for|mean}",
            "{it|moerun} {uses|takes} {too much|all my|all of my} {vram|gpu memory}",
            "{which|what} values {does|can} vram_limit {take|have|accept}",
            "it {should|must|may} not {take|use|fill} {more than|over} {half|80%|6 gb|8 gb|most} "
            "of {my|the} {gpu memory|vram|gpu|graphics memory}",
            "{my|the} {game|desktop|other program|browser} needs {some |}{vram|gpu memory|the "
            "gpu} {too|as well|}",
            "don't {fill|use up|use all of|eat} {my|the} {vram|gpu|gpu memory|graphics memory}",
            "use {at most|only|up to} {6|8|10|12} {gb|gigs|g} of {vram|gpu memory|graphics memory}",
            "cap the {gpu|card|vram} at {10|6|8} {gigabytes|gb|gigs}",
            "{maximum|most|upper bound of} {vram|gpu memory}",
            "{only|just} {6|10|12} {gb|gigs} of {my |}{vram|gpu memory} {may|should} be used",
        ),
    ),
    Intent(
        name="ram_limit",
        answer="Set ram_limit to auto, a size such as 16G or a share such as 50%: it bounds all "
        "host memory that the runner uses.",
        names=("ram_limit", "the ram limit", "a ram limit", "the host memory limit"),
        tasks=(
            "{limit|cap|restrict|bound|reduce} {ram|the ram|host memory|ram use|main memory|"
            "system memory|the ram usage}",
            "{use|take|give it} {only|at most|no more than|just} {16 gb of ram|half of the ram|"
            "50% of ram|8 gb ram|half my ram|a part of the ram}",
            "{keep|reserve|leave} {ram|main memory|some ram|system memory} {free|for the "
            "browser|for other programs|for other things}",
        ),
        questions=(
            "what {does|is} ram_limit {do|for|mean}",
            "{it|moerun} {uses|takes|eats|fills} {too much|all my|all of my} {ram|main "
            "memory|system memory}",
            "{which|what} values {does|can} ram_limit {take|have|accept}",
            "my {computer|machine|pc|system} {swaps|runs out of ram|freezes}",
            "my {browser|ide|other programs|desktop} {needs|need} {some |}{ram|memory} {too|as "
            "well|}, {restrict moerun|limit it|what can i do}",
            "it {should|must|may} not {take|use|fill} {more than|over} {half|50%|16 gb|8 gb|most|"
            "20 gigs} of {my|the} {ram|system memory|main memory|memory}",
            "don't {fill|use up|use all of|eat} {my|the|all my} {ram|system memory|main memory}",
            "use {at most|only|up to} {8|12|24|32} {gb|gigs|g} of {ram|system memory|main memory|"
            "memory}",
            "only {12|8|20} {gb|gigs} of {my |}{ram|memory} {may|should} be used",
            "cap {the |}{ram|memory|host memory} at {10|24|8} {gigabytes|gb|gigs}",
            "{maximum|most|upper bound of} {ram|host memory}",
        ),
    ),
    Intent(
        name="expert_residency",
        answer="expert_residency says which share of the expert bytes should lie in VRAM and in "
        "RAM, as in {vram: 30%, ram: 50%}.",
        names=("expert_residency", "expert residency", "the expert_residency key"),
        tasks=(
            "{choose|set|decide|control} {what share|which share|how many|what part|what "
            "percentage} of {the |}experts {lie|lies|are|is|stay|goes} {in vram|in ram|on the "
            "gpu}",
            "{put|keep|place} {half|30%|some|a third|a share} of {the |}experts {in vram|in ram|"
            "on the gpu}",
        ),
        questions=(
            "what {does|is} expert_residency {do|for|mean}",
            "{half|a third|30%} of {the |}experts {in|on} {vram|the gpu|ram}",
        ),
    ),
    Intent(
        name="preload_experts",
        answer="preload_experts says how many experts are read ahead: a number forces it, auto "
        "measures, and 0 turns it off.",
        names=("preload_experts", "preloading", "expert preloading", "the preload_experts key"),
        tasks=(
            "{preload|read ahead|prefetch|load ahead} {experts|some experts}",
            "{turn off|disable|switch off} {preloading|preload_experts|expert preloading}",
        ),
        questions=(
            "what {does|is} preload_experts {do|for|mean}",
            "{are|can} experts {be |}{preloaded|prefetched|read ahead}",
        ),
    ),
    Intent(
        name="streaming",
        answer="streaming says how experts on SSD reach memory; its values are auto, off, paging "
        "and cache.",
        names=(
            "streaming",
            "the streaming key",
            "the streaming setting",
            "expert streaming",
            "streaming mode",
        ),
        tasks=(
            "{set|choose|change|turn off|disable} {streaming|the streaming mode|expert streaming}",
        ),
        questions=(
            "{which|what} values {does|can} streaming {take|have|accept}",
            "what does {streaming|streaming: paging|streaming: off} {do|mean}",
            "{which|what} streaming modes {are there|exist}",
        ),
    ),
    Intent(
        name="pins",
        answer="Use pins: they map tensor name patterns to a device such as gpu0, cpu or ssd, and "
        "the rest is planned around them.",
        names=("pins", "a pin", "the pins key", "pinning", "pinned tensors"),
        tasks=(
            "{pin|fix|force|bind|put|assign|place} {a tensor|tensors|a layer|some tensors|"
            "experts|specific layers|layers|attention} {to|on} {a device|a gpu|gpu0|gpu1|the "
            "cpu|a specific gpu|a certain device}",
            "{override|change|control} {the placement|the plan|where a tensor goes} {by hand|"
            "manually|myself|for some tensors|}",
            "{choose|decide} {a device for a tensor|where a layer goes|the device of a layer|"
            "where tensors go myself}",
        ),
        questions=(
            "what {do|are} pins {do|for|}",
            "{can|may} i {decide|choose|say} {where|on which device} {a tensor goes|a layer "
            "goes|tensors lie}",
            "{force|fix|nail|pin|bind} {the |}{attention|attention tensors|experts|router|"
            "tensors|weights|output layer} {of layer 3|of layer 5|of the first layer|of some "
            "layers|} {to|on|onto} {the cpu|gpu1|gpu0|a device}",
            "{i|let me} {decide|want to decide|determine} {myself |}{where|on which gpu} {a "
            "layer|some tensors|a tensor|experts} {goes|go|lie}",
            "{manual|own|custom} placement",
            "{tie|attach|send} {layers|tensors} to {a gpu|one gpu|the cpu|a device}",
            "put the {experts|attention|tensors} of layer {7|3|12} on {gpu1|gpu0|the cpu} {|by "
            "hand|myself}",
            "{by hand|manually} {place|put|assign} {tensors|layers|experts}",
            "{this|that|a given} {tensor|layer} {must|should} {go|be} on {gpu0|gpu1|the cpu}",
        ),
    ),
    Intent(
        name="default_context",
        answer="By default the context is the smaller of the model's trained length and 8,192 "
        "tokens.",
        names=("the default context", "the default context length", "the standard context"),
        questions=(
            "how {long|large|big} is the {default context|context|context window|standard context} "
            "{|by default|normally|usually|at first}",
            "{what is|what's} the {default|standard|normal|usual} {context|context length|context "
            "size|context window|number of context tokens}",
            "how many tokens {fit in the context|of context do i get|is the context|can the context"
            " hold} {|by default}",
            "{which|what} context {is used|does it use|do i get|size is used} {|by default|without "
            "a flag|without --ctx}",
            "how many tokens {of context |}{do i get|are there|can it handle|can it read} "
            "{without any flags|by default|if i set nothing|if i do nothing|out of the box}",
            "{how much|how many} {context|tokens} {out of the box|without settings}",
            "without {options|flags|--ctx|settings}, how {many tokens|long|large} {does the "
            "context have|is the context|is it}",
            "{default|normal|initial} {number|count} of {context |}tokens",
        ),
    ),
    Intent(
        name="set_context",
        answer="Pass --ctx N, as in moerun run MODEL --ctx 16384, or --ctx max for the largest "
        "that fits.",
        names=("--ctx", "--ctx max", "the ctx flag", "the context flag"),
        tasks=(
            "{set|change|increase|raise|enlarge|choose|extend|reduce|lower|adjust|grow} {the "
            "context|the context length|the context size|context|the context window|the number "
            "of context tokens}",
            "{get|use|have} {a larger|a bigger|more|a smaller|the largest|the maximum|a shorter} "
            "{context|context length|context size}",
        ),
        questions=(
            "what {does|is} {--ctx|--ctx max|the ctx flag} {do|for|mean}",
            "which {flag|option} {sets|changes} the context {|length|size|window}",
            "my {text|document|prompt} is {too long|longer than the context}",
            "make the context {window |length |}{bigger|larger|longer|smaller|shorter}",
            "{longer|larger|bigger|more} context",
            "{32k|16k|100k|4096|65536} {tokens of |}context",
            "can {it|the model} {read|handle|take} {longer|more|larger} {texts|documents|text|"
            "prompts}",
            "{32k|64k|20000} tokens of {history|context}{, can i have that|}",
            "more {tokens|history|text} in the context",
            "{longer|larger} {history|memory of the conversation|window}",
        ),
    ),
    Intent(
        name="context",
        answer="The context is the text that the model can see at once, counted in tokens: the "
        "conversation so far and the answer.",
        names=(
            "the context",
            "context length",
            "a context window",
            "the context window",
            "context",
            "context size",
            "the context length",
        ),
        questions=(
            "what does {context|context length|context window} mean",
            "what is {a|the} context {|in a model|of a model|in moerun}",
            "what {does|do} people mean {by|with} context",
        ),
    ),
    Intent(
        name="units",
        answer="G and GiB mean 2^30 bytes, GB means 10^9 bytes, and a percentage is of the total.",
        names=("the units", "GiB", "a gib", "gigabytes and gibibytes", "memory units"),
        tasks=("{write|give|enter|specify} {sizes|a size|memory sizes|limits|a limit}",),
        questions=(
            "{what is|what's} the difference between {gb and gib|gib and gb|g and gb}",
            "{which|what} units {does it use|are used|can i use|does moerun use}",
            "{how many bytes are|how much is|how many bytes has} {a g|8g|a gib|a gb|one gb}",
            "what does {8g|80%|g|10gb|a percentage} mean",
            "{are|is} {8g and 8gb|g and gb|a gib and a gb|16g and 16gb} {the same|equal|different}",
            "what does the {g|percent sign|%} {mean|stand for}",
            "difference between {a gigabyte and a gibibyte|gigabytes and gibibytes|gb and gib}",
            "{gigabyte|gibibyte} {meaning|or gibibyte}",
        ),
    ),
    Intent(
        name="load_mode",
        answer="If the CPU part fits in RAM 1.5 times over, it is copied there; otherwise the file "
        "is read through mmap.",
        names=("the load mode", "load mode", "a load mode", "copy mode", "--no-mmap"),
        questions=(
            "{when|why} is {the model|a model|the file} {copied|mapped|mmapped}",
            "{does it|does moerun} {use mmap or a copy|copy the model|copy weights|always "
            "use mmap}",
            "how {is|does moerun|does it} {the model|a model} {loaded|load} {|into memory|"
            "into ram}",
            "{which|what} load modes {are there|exist}",
            "is the {model|file} {read|copied|loaded} {completely|fully|at once|into ram first}",
            "when does it {use mmap|copy|map the file}",
        ),
    ),
    Intent(
        name="sampling",
        answer="Sampling settings such as the temperature come from the model file unless you set "
        "them.",
        names=("sampling", "the temperature", "sampling settings", "temperature", "top_p"),
        tasks=("{set|change|choose} {the temperature|sampling|sampling settings}",),
        questions=(
            "where {does the temperature|do sampling settings|do sampling defaults} come from",
            "{which|what} {temperature|sampling} {is used|does it use}",
        ),
    ),
    Intent(
        name="chat_template",
        answer="The chat template in the GGUF turns a conversation into the text that the model "
        "was trained on; moerun runs it in a sandbox.",
        names=("a chat template", "the chat template", "chat templates"),
        questions=(
            "{which|what} chat {template|format} {is used|does it use}",
            "how is {a|the} {conversation|chat} {formatted|turned into text}",
            "where does the chat template come from",
        ),
    ),
)

FAILURES: Final = (
    Intent(
        name="exit_codes",
        answer="Exit codes name the family: 2 usage, 3 model, 4 plan, 5 machine, 6 engine, 7 "
        "server, 70 a bug, 130 interrupted.",
        names=(
            "exit codes",
            "the exit codes",
            "return codes",
            "the exit code",
            "an exit code",
            "error codes",
        ),
        questions=(
            "{which|what} {exit codes|return codes|error codes} {are there|exist|does it "
            "have|does moerun use|does it return}",
            "{list|name} {the|all} {exit codes|error codes}",
            "{what do|explain} the {exit codes|error codes|return codes} {mean|}",
            "{list|table|overview|meaning} of {the |}{exit statuses|exit codes|return codes|"
            "return values|error codes}",
            "how do {scripts|i} {know|tell|see} what {failed|went wrong}",
            "the {list|meaning} of codes {it can return|it returns|}",
            "{return|exit} {values|codes|statuses}",
        ),
    ),
    *(
        Intent(
            name=f"exit_{code}",
            answer=f"Exit code {code} means {meaning}.",
            names=(
                f"exit code {code}",
                f"code {code}",
                f"exit status {code}",
                f"error {code}",
                f"status {code}",
            ),
            questions=(
                f"{{why|when}} {{does|did}} {{it|moerun|my script|the command}} {{exit|end|stop|"
                f"return|fail|quit}} with {{code |exit code |status |}}{code}",
                f"{{it|moerun|the program|the command}} {{returned|exited with|ended with|gave me|"
                f"gives|failed with}} {{code |exit code |status |}}{code}",
                f"{{i get|i got|i see}} {{exit code|code|error code|status|exit status}} {code}",
                f"what {{is|does}} {{exit|return|error}} {{code|status}} {code} {{mean|}}",
            ),
        )
        for code, meaning in (
            ("2", "that the command line or a setting could not be understood"),
            ("3", "that the model was not found or is not one that can run"),
            ("4", "that no plan fits the model, the machine and the settings together"),
            ("5", "that the machine could not be probed"),
            ("6", "that the engine is missing, of another version, refused or crashed"),
            ("70", "something unexpected: a bug; the message names the log"),
            ("130", "that a one-shot prompt was interrupted with Ctrl-C"),
        )
    ),
    Intent(
        name="interrupt",
        answer="Press Ctrl-C: in a conversation it ends the answer, and a one-shot prompt exits "
        "with 130.",
        names=("ctrl-c", "ctrl c"),
        tasks=(
            "{stop|interrupt|abort|cancel|end|halt|break off} {an answer|the answer|generation|"
            "a running answer|the output|the model}",
        ),
        questions=(
            "what {does|happens on|happens with} {ctrl-c|ctrl c|control c} {do|}",
            "the answer is too long, how do i stop it",
            "how do i {stop|interrupt|abort|end} it while it {is writing|writes|answers|is "
            "generating|talks}",
            "{stop|abort|cancel} {writing|it|generation|now|talking|the run}",
            "it won't stop {talking|writing|generating}",
            "it {babbles|talks|goes|writes} on and on{, how do i make it shut up|, how do i stop "
            "it|}",
            "make it {shut up|stop|be quiet}",
            "{stop|end} {the |}{babbling|answer|output} {early|now}",
        ),
    ),
    Intent(
        name="does_not_fit",
        answer="What cannot run is refused with the missing bytes and remedies that were checked "
        "to fit, such as a smaller context.",
        names=("DoesNotFit", "a shortfall", "does not fit"),
        questions=(
            "what happens {if|when} {a model|the model|it} {is too large|does not fit|is too big|"
            "cannot run|needs too much memory} {|at all}",
            "{the model|my model|it} {does not fit|is too large|is too big}, {what now|what can i "
            "do|what should i do|any advice}",
            "{it|moerun} {says|tells me|complains} {it does not fit|there is not enough memory|"
            "the model does not fit}",
            "what are {remedies|the remedies|the suggestions of the planner}",
            "{not enough|too little|insufficient} {memory|ram|vram}",
            "{the|my} model is {simply |just |much |far |}too {large|big} for {my box|my machine|"
            "this pc|me|this computer}{, what will you do|, what happens|}",
            "{even|not even} the ssd {is not enough|cannot help}",
            "what does it do {if|when} {there isn't|there is not} enough {memory|room|space} {|"
            "for a model|at all}",
            "nothing fits{, what then|, what does moerun tell me|}",
            "{it|my model} {is|was} {refused|rejected}",
            "what {does it tell me|do i read} when {nothing fits|the model is too large}",
        ),
    ),
    Intent(
        name="out_of_memory",
        answer="If the engine runs out of memory while loading, moerun plans once more with a "
        "larger margin and says so.",
        names=("out of memory", "an out of memory error", "oom", "cuda out of memory"),
        questions=(
            "what {happens|does moerun do|does it do} {on|when it|if it|at|after} {out of memory|"
            "runs out of memory|an out of memory error|oom}",
            "{i got|i get|there was} {an out of memory error|out of memory|cuda out of memory|oom} "
            "{|while loading|at load}",
            "loading {fails|failed|crashes} {with out of memory|for lack of memory|because memory "
            "ran out}",
            "{it|loading|the engine} {ran|runs|run} out of {memory|vram|ram} {|while loading|at "
            "start}",
        ),
    ),
    Intent(
        name="crash",
        answer="The engine runs in a process of its own, so a crash becomes one clear sentence and "
        "moerun survives.",
        names=("a crash", "the runner", "the runner process", "a segfault"),
        questions=(
            "what happens {if|when} {the engine|llama.cpp|the model|it|the runner} {crashes|dies|"
            "segfaults|is killed}",
            "why {does|is} the {engine|model} {run|running} in {its own|another|a separate|a child}"
            " process",
            "{the engine|llama.cpp|the model} {crashed|died|segfaulted}",
            "does a crash of {llama.cpp|the engine|the model} {kill|end|stop|take down} {moerun|"
            "it|the program|everything}",
            "what {if|happens if} {llama.cpp|the engine|the runner} {crashes|fails hard|aborts|"
            "segfaults}",
            "suppose {llama.cpp|the engine} {segfaults|crashes|dies} {halfway|}",
            "{native|engine|hard} crash",
        ),
    ),
    Intent(
        name="debug",
        answer="Set MOERUN_DEBUG=1, and an unexpected error shows its traceback.",
        names=("MOERUN_DEBUG", "MOERUN_DEBUG=1", "debug mode", "a traceback"),
        tasks=(
            "{see|get|show|print} {a traceback|the traceback|the full error|the stack trace|a "
            "stack trace|debug output}",
            "{debug|report} {a bug|an unexpected error|moerun itself|a bug in moerun}",
            "{turn on|enable|switch on} {debugging|debug mode|tracebacks}",
        ),
        questions=(
            "what {does|is} moerun_debug {do|for|}",
            "{i found|there is} a bug",
            "something unexpected happened",
            "where {is|do i find|can i see} the {stack trace|traceback} {when|if} {something|"
            "something odd|an error|something strange} {occurs|happens|fails}",
            "{more|full} {details|information} {about|on} {an error|a bug|a failure}",
            "there's an {odd|unexpected|unknown} {failure|error}{, i want the whole traceback|}",
            "{whole|complete|full} {traceback|stack trace}",
        ),
    ),
    Intent(
        name="unknown_key",
        answer="An unknown key or a bad value is refused, and the message names the key, the file "
        "and the line.",
        names=("an unknown key", "a bad value", "a config error"),
        questions=(
            "what happens {if|when} {i misspell a key|a key is unknown|a key is wrong|a "
            "setting is wrong|a value is bad|there is a typo in the config}",
            "{my config|the config file|moerun.yaml} {has|contains} {an error|a mistake|a "
            "typo|a wrong key|a wrong value}",
            "how are {wrong settings|config mistakes|errors in the config} {reported|found}",
            "i {mistyped|misspelled|wrote wrongly|made a typo in} {a key|a setting|something} in "
            "{the yaml|the config|the file|moerun.yaml}",
            "{typo|mistake|error} in {the |my |}{yaml|config|settings|configuration}",
            "i wrote {vram_limt|hierachy|a wrong name} in my {yaml|config} {by mistake|}",
            "{wrong|misspelt|invalid} {key|name|value} in {my |the }{yaml|config|settings}",
        ),
    ),
)

ENGINE_AND_BUILD: Final = (
    Intent(
        name="engine",
        answer="The engine is llama.cpp, used through llama-cpp-python 0.3.36.",
        names=("the engine", "llama.cpp", "llama-cpp-python", "the backend library"),
        questions=(
            "{which|what} engine {does it use|does moerun use|is used|is inside|computes}",
            "{what|which library|which program} {computes|calculates|evaluates|executes|runs} {the "
            "model|the tensors|models|the layers}",
            "{is it|is moerun} {based on|built on|using} {llama.cpp|llama|pytorch|vllm}",
            "does {it|moerun} use {llama.cpp|pytorch|vllm|llama-cpp-python|ggml}",
            "which version of {llama.cpp|llama-cpp-python|the engine} {is used|does it need|do i "
            "need}",
            "{which|what} {library|software|program|code} {does|runs|performs} {the |}{inference|"
            "computation|math|calculation|actual work}",
            "what {is it|is moerun} {based|built} on",
            "{which|what} {runtime|inference engine|backend library} {is it|does it use|is used}",
            "is it llama.cpp that {computes|runs|does it}",
            "{inference|computation} {library|engine|backend}",
        ),
    ),
    Intent(
        name="engine_version",
        answer="Because moerun uses the C structs of llama-cpp-python, the version 0.3.36 is "
        "pinned exactly and another one is met with a clear sentence.",
        questions=(
            "{why|is} {is |}the {engine|engine version|llama-cpp-python version|version of "
            "llama-cpp-python} {pinned|fixed|exact}",
            "{can i|may i|is it ok to} {use|install|take} {another|a newer|an older|a different} "
            "{version of llama-cpp-python|llama-cpp-python|engine|engine version}",
            "what {happens|does it do} with {another|a newer|a different|a wrong} {engine|engine "
            "version|version of llama-cpp-python}",
            "{could|can|should|may} i {upgrade|update|replace|change} {llama-cpp-python|the "
            "engine|llama.cpp} {myself|by hand|}",
            "{pip|i} {upgraded|updated} llama-cpp-python",
            "why {exactly |just |}0.3.36",
        ),
    ),
    Intent(
        name="make_run",
        answer="Type make run in the repository: it sets everything up and lets the demo model "
        "answer a prompt.",
        names=("make run", "the installation", "the setup", "the set-up", "installing moerun"),
        tasks=(
            "{install|set up|build|compile|get|try} {moerun|it|the program|the project|this}",
            "{build|install} {from source|moerun from source|the repository|the repo}",
        ),
        questions=(
            "what does make run do",
            "{what is|what are} the {first steps|first step|quick start|installation steps}",
            "{how do i|where do i|how to} {begin|start from zero|start with moerun|start}",
            "{installation|install|setup|quick start|build} {instructions|guide|steps|}",
            "what are the {steps|commands} to {install|set up|build|get} {this|it|moerun} {from "
            "git|from the repository|here|}",
            "i {downloaded|have} {the source|the code}, {what now|what next|and now|how do i "
            "continue|what do i do}",
            "{how do i|how can i|where do i|what do i do to} {get going|begin|get it running|"
            "start using it}",
            "{first|initial} {steps|setup|installation}",
            "{fresh|new|clean} {machine|debian|ubuntu|install}, {how do i install it|what do i "
            "type|what now}",
            "{fresh|new} {ubuntu|debian} {box|machine}, what do i type to get it {all |}installed",
            "{get|bring} it {up and running|installed|running}",
            "{installing|setting up|building} {moerun|it|this}",
        ),
    ),
    Intent(
        name="make_test",
        answer="Type make test: lint, types and all tests, with the real engine.",
        names=("make test", "the tests", "the test suite"),
        tasks=(
            "{run|start|execute|launch} {the tests|tests|all tests|the checks|the unit tests|lint"
            " and tests}",
            "{test|check|verify} {moerun itself|the code|the source code|my changes|a change}",
        ),
        questions=(
            "what does make test do",
            "{is it|is moerun|is the code} tested",
            "{which|what} command runs the tests",
            "what does {ci|the ci} run",
            "how do {developers|contributors|i|we} {check|verify|know|make sure} that "
            "{everything|it|the code|all} {still |}{works|is fine|is right}",
            "i {changed|edited} the code, {how do i test it|how to check it}",
            "{linting|lint|type checks}",
            "before i send a {patch|change}, which command checks {it|the code}",
            "{check|verify} {my|a} {patch|change|commit|pull request}",
        ),
    ),
    Intent(
        name="make_test_fast",
        answer="Type make test-fast: it runs the tests without the engine.",
        names=("make test-fast", "the fast tests", "test-fast"),
        tasks=(
            "{run|start|execute} {only the fast tests|the fast tests|quick tests|tests without "
            "the engine|the tests quickly}",
        ),
        questions=("what does make test-fast do", "are there {fast|quick} tests"),
    ),
    Intent(
        name="make_bench",
        answer="Type make bench: it measures moerun beside plain llama-cpp-python in one run.",
        names=("make bench", "the benchmark", "the benchmarks", "benchmarks"),
        tasks=(
            "{run|start|execute} {the benchmark|the benchmarks|benchmarks|a benchmark}",
            "{measure|benchmark|compare} {the speed|moerun|the overhead|speed|performance}",
        ),
        questions=(
            "what does make bench do",
            "{is there|are there} {a benchmark|benchmarks}",
            "how {fast|quick} is it compared {to|with} {plain |}{llama.cpp|llama-cpp-python}",
        ),
    ),
    Intent(
        name="make_help",
        answer="Type make help: it lists all make targets.",
        names=("make help", "the make targets", "the makefile"),
        tasks=("{see|list|show} {the|all} {make targets|targets of the makefile|targets}",),
        questions=(
            "{which|what} make targets {are there|exist}",
            "what does make help do",
            "what can i do with make",
        ),
    ),
    Intent(
        name="backend",
        answer="Give make a backend: make run BACKEND=auto, cpu, cuda, vulkan or metal; auto "
        "builds for what is there.",
        names=(
            "BACKEND",
            "BACKEND=auto",
            "the backend",
            "the BACKEND variable",
            "BACKEND=cuda",
            "BACKEND=vulkan",
            "BACKEND=metal",
            "BACKEND=cpu",
            "the backends",
        ),
        tasks=(
            "{build|compile|install|make} {it|moerun|the engine} {with|for} {cuda|metal|cuda "
            "support|gpu support|the gpu|metal|my nvidia card|the cpu only"
            "}",
            "{choose|select|set|change|switch} {the backend|a backend|another backend|the "
            "backend of the engine}",
            "{enable|activate|use|get} {cuda|vulkan|metal|gpu support|cuda support|gpu "
            "acceleration}",
        ),
        questions=(
            "{which|what} backends {are there|exist|does it support|can i choose|are available}",
            "what does {backend=auto|backend|backend=cuda} {do|mean}",
            "{i want|i need|give me|build} {an engine|the engine|a build} {built |made |}{for|"
            "with} {cuda|vulkan|metal|the cpu|nvidia}",
            "{which|what} {make |}{variable|option} {chooses|sets|selects} {the |}{backend|gpu "
            "backend|cuda}",
            "{cuda|vulkan|metal} {build|version|instead of cpu}",
            "{nvidia|cuda|metal|gpu} build {please|}",
            "build {for|with} {nvidia|apple metal|cuda}",
        ),
    ),
    Intent(
        name="architectures",
        answer="moerun reads every MoE architecture that its llama.cpp knows, such as qwen3moe, "
        "deepseek2, gpt-oss and Mixtral; dense models run as well.",
        names=("supported models", "the supported architectures"),
        questions=(
            "{which|what} {models|architectures|llms|model families} {are supported|does it support"
            "|can i run|work|does moerun support|can it run|can i use}",
            "{does it|does moerun|can it|can moerun} {run|support|work with|load} {qwen|qwen3|"
            "mixtral|deepseek|gpt-oss|llama|dense models|normal models|glm|olmoe|llama 4|mistral}",
            "{can i|is it possible to} {run|use|load} {qwen3|mixtral|deepseek v3|gpt-oss 120b|a "
            "dense model|llama|deepseek}",
            "{is|are} {qwen3|mixtral|deepseek|gpt-oss|dense models|my model} supported",
            "does {qwen|qwen3 30b|mixtral 8x7b|deepseek|gpt-oss 20b|llama 4|kimi|glm 4.5} {work|"
            "run|load|fit}",
            "i {have|want to run|downloaded} {qwen3|mixtral|deepseek v3|gpt-oss|a dense model|"
            "llama 3}",
            "can i {use|run} {normal|dense|ordinary|non-moe} models",
            "is {deepseek|qwen|mixtral|gpt-oss|olmoe} among the models that {work|run}",
            "{list of|which} {models|families} {work|that work|run}",
            "{qwen3moe|deepseek2|mixtral|gpt-oss}",
        ),
    ),
    Intent(
        name="split_files",
        answer="Give the first part of a split model, named -00001-of-0000N; the other parts are "
        "found beside it.",
        names=("split files", "a split model", "a split gguf", "shards", "a shard"),
        tasks=(
            "{load|run|use|open} {a split model|split files|a split gguf|a model in several "
            "files|shards|a model with several parts}",
        ),
        questions=(
            "{my|the} {model|gguf} {has|consists of|comes in|is split into} {several|two|"
            "many|three} {files|parts|shards}",
            "{does it|does moerun|can it} {support|read|load} {split files|shards|split "
            "models|several files}",
            "what if a {shard|part} is missing",
            "what does 00001-of-0000{2|3|4} mean",
            "my {model|download|gguf} {came|comes|is|arrived} {as|in} {three|several|two|many|"
            "five} {gguf |}{pieces|files|parts|shards}",
            "{several|many|multiple} gguf {files|parts|pieces} {for one model|}",
            "which {part|file|piece|shard} do i {give|open|pass|load}",
        ),
    ),
)

SMALL_TALK: Final = (
    Intent(
        name="greeting",
        answer="Hello! Ask me anything about moerun.",
        questions=(
            "hi {|there|moerun|demo|you|friend|all}",
            "hello {|there|moerun|again|you}",
            "hey {|there|you|moerun}",
            "good {morning|evening|afternoon|day}",
            "greetings",
            "how are you {|today|doing}",
            "hello, how are you",
            "hi, how are you",
            "what's up",
            "nice to meet you",
            "yo",
            "hallo",
            "howdy",
            "is anybody there",
            "are you there",
            "how is it going",
            "how do you do",
            "{hiya|heya|hola|hey hey|hi hi|hello hello|good day to you|salut|moin}",
            "{anyone|anybody} {here|there|home}",
        ),
    ),
    Intent(
        name="thanks",
        answer="You're welcome. Ask on whenever you like.",
        questions=(
            "{ok |great |}{thanks|thank you|thx|many thanks|thanks a lot|thank you very "
            "much|thank you so much|cheers}",
            "{great|cool|nice|perfect|ok|okay|awesome|got "
            "it|good|very good|well done|understood|i see|makes sense}",
            "{that|this} {helps|helped|was helpful|is helpful|was useful|is great}",
            "you are {great|helpful|very helpful|good|cool|nice}",
            "good answer",
            "{thank you|thanks}, {that was useful|that helped|that helps|very useful|very kind|"
            "perfect|great}",
            "{much|very much} appreciated",
            "{wonderful|excellent|brilliant|super|amazing}",
            "{thanks|thank you} {a bunch|a ton|so much|again}",
            "{that|this} is {all i needed|what i needed|clear}",
        ),
    ),
    Intent(
        name="goodbye",
        answer="Goodbye, and enjoy moerun.",
        questions=(
            "{bye|goodbye|good bye|see you|see you later|good night|farewell|bye bye|ciao|"
            "so long|until tomorrow|take care}",
            "i {have to|must} go {|now}",
            "{that is|that's} all {|for now|for today}",
            "see you {tomorrow|soon}",
            "{i'm|i am} {done|leaving|off|finished}",
            "{have a|enjoy your} {nice|good|great} {day|evening|weekend}",
        ),
    ),
)

INTENTS: Final[tuple[Intent, ...]] = (
    *ABOUT_THE_PROGRAM,
    *IDEAS,
    *TIERS,
    *COMMANDS,
    *SETTINGS,
    *FAILURES,
    *ENGINE_AND_BUILD,
    *SMALL_TALK,
)
