"""The road from a tutorial to its page. Nothing here needs MkDocs or the network.

    tutorials/NN_name.py
      source      jupytext makes a notebook of it
      run         nbmake executes the notebook where it is stale, and that run is the test
      ledger      in its kernel, records what is asserted: text, values, bound
      clean       what differs between two runs of the same code is masked
    docs/tutorials/NN_name.ipynb
      header      what it says of itself, as a strip and a box under the title
      page        its cells and outputs as the Markdown of a page
      outputs     what came out, and its figures
      links       links of the source tree become links of the site
      install     the line that installs the wheel of this build
      download    the notebooks that a reader takes away
      playground  what it saved, as a file that a browser can read
      script      the same as a .py, which says how it is run
      claims      the page of all that the tutorials assert
      gallery     the page of all tutorials
      used        which of them use which name of the package
      pictures    the size of each picture, said on its page
      light       a built page without what nobody reads

`docs/_hooks/events.py` is what MkDocs calls; `python docs/_hooks` are the commands.
"""
