"""The look of report pages: light and dark, wide and narrow."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --card: #ffffff; --ink: #1d2125; --soft: #5d666f; --rule: #e3e5e8;
  --bar: #3b6fb5; --open: #9db8da; --mark: #b3471d; --ok: #1d7a46; --bad: #b3261e;
  --ok-card: #e9f5ee; --bad-card: #fbebe9; --differs: #ffe9a8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181b; --card: #1d2125; --ink: #e7e9eb; --soft: #9aa4ad; --rule: #31373d;
    --bar: #6ea0e0; --open: #3f5c82; --mark: #f0925f; --ok: #6fcf97; --bad: #f28b82;
    --ok-card: #18291f; --bad-card: #331c1a; --differs: #5c4a12;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1000px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: 22px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 40px 0 10px; }
h3 { font-size: 14px; margin: 18px 0 6px; }
p { margin: 6px 0; max-width: 72ch; }
.soft, caption, figcaption { color: var(--soft); font-size: 13px; }
.verdict { border-radius: 8px; padding: 14px 18px; margin: 18px 0; background: var(--ok-card); }
.verdict b { color: var(--ok); }
.verdict.stops { background: var(--bad-card); }
.verdict.stops b { color: var(--bad); }
.verdict ul { margin: 6px 0 0; padding-left: 20px; }
.verdict li { overflow-wrap: anywhere; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(46%, 200px), 1fr)); gap: 10px;
}
.tile, figure, .row { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tile { padding: 10px 14px; }
.tile b { display: block; font-size: 21px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.charts, .pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 12px;
}
.pair { margin: 8px 0; }
figure { margin: 0; padding: 12px; }
figcaption b { color: var(--ink); font-weight: 600; }
figure.png { background: #ffffff; }
svg, img { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--rule); }
svg .bar { fill: var(--bar); }
svg .open { fill: var(--open); }
svg line.mark { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg text.mark { fill: var(--mark); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 55%; font-size: 14px; margin: 6px 0; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 20px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 9em; }
td.place { white-space: nowrap; }
td.ok { color: var(--ok); }
td.bad { color: var(--bad); font-weight: 600; }
.meter {
  height: 10px; border-radius: 5px; margin: 4px 0 2px; overflow: hidden; background: var(--rule);
}
.meter i { display: block; height: 100%; background: var(--bar); }
.row { padding: 8px 12px; min-width: 0; }
.row pre {
  margin: 4px 0 0; font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
}
mark { background: var(--differs); color: inherit; border-radius: 2px; }
@media (max-width: 520px) { td.place { white-space: normal; } h2 { margin-top: 32px; } }
"""
