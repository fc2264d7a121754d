"""The page's style sheet: one for both colour schemes, one restrained palette (Okabe and Ito's, colour-blind safe)."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --ink: #1b1f24; --muted: #5d6670; --line: #e1e4e8; --faint: #eceef0;
  --s0: #0072b2; --s1: #d55e00; --s2: #00815f; --s3: #a8488a; --s4: #7a6a00; --s5: #5d6670; --s6: #5a48c8;
  --on: #ffffff;
  --wrong: #b34700; --half: #1b1f24; }
@media (prefers-color-scheme: dark) { :root {
  --page: #101316; --card: #181c20; --ink: #e6e9ec; --muted: #9aa4ae; --line: #2c3238; --faint: #22272c;
  --s0: #56b4e9; --s1: #f0883e; --s2: #2fbf93; --s3: #d98bc0; --s4: #d8c84a; --s5: #9aa4ae; --s6: #a394ff;
  --on: #0b0e11;
  --wrong: #f0883e; --half: #0b0e11; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, h3, p, dl, dd, figure, ul, pre { margin: 0; padding: 0; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 650; }
h2 { font-size: 20px; letter-spacing: -0.01em; font-weight: 650; margin: 48px 0 14px; }
h3 { font-size: 15px; font-weight: 600; }
ul { list-style: none; }
b, dd, td, text { font-variant-numeric: tabular-nums; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: end; gap: 24px 48px; }
.eyebrow { font-size: 13px; font-weight: 600; color: var(--muted); margin-bottom: 4px; }
.run { color: var(--muted); margin-top: 4px; }
.hero { font-size: 52px; line-height: 1; font-weight: 650; letter-spacing: -0.03em; color: var(--s0);
  font-variant-numeric: tabular-nums; margin: 2px 0 8px; }
.note, .quiet { font-size: 13px; color: var(--muted); }
.section-note { color: var(--muted); margin: -8px 0 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; min-width: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 1px; margin-top: 28px;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.cards div { padding: 12px 16px; box-shadow: 0 0 0 1px var(--line); }
.cards dt { font-size: 13px; color: var(--muted); }
.cards dd { font-size: 19px; font-weight: 600; letter-spacing: -0.01em; }
.stack > .cards { margin-top: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 16px; }
.stack { display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px; }
.errors { display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px; align-items: start; }
@media (min-width: 1100px) { .errors { grid-template-columns: max-content minmax(320px, 1fr); } }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--muted); margin: 2px 0; }
.legend b { color: var(--ink); font-weight: 600; }
.key { width: 16px; height: 10px; margin-right: 6px; }
.swatches { width: 86px; height: 12px; margin-right: 8px; vertical-align: -1px; }
.chart { display: flex; flex-direction: column; justify-content: space-between; padding-bottom: 10px; }
.chart > svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--muted); }
.mid { text-anchor: middle; } .end { text-anchor: end; }
line.grid { stroke: var(--line); display: inline; }
.mark { stroke: var(--muted); stroke-dasharray: 2 3; }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.frame { fill: var(--faint); }
polyline, .key line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); stroke-dasharray: 6 3; }
.s3 { stroke: var(--s3); stroke-dasharray: 1 4; } .s4 { stroke: var(--s4); }
.s5 { stroke: var(--s5); stroke-dasharray: 4 4; }
.dot { stroke-width: 2; stroke-dasharray: none; fill: var(--card); }
.hover rect { fill: transparent; } .hover > line, .hover > circle, .hover > text { visibility: hidden; }
.hover:hover > line, .hover:hover > circle, .hover:hover > text { visibility: visible; }
.guide { stroke: var(--muted); stroke-width: 1; } svg .readout { fill: var(--ink); }
.hit { fill: var(--s0); } .miss { fill: var(--s1); } .map rect.hit:hover, .map rect.miss:hover { stroke: var(--ink); }
svg .count { fill: var(--ink); pointer-events: none; } svg .half { fill: var(--half); } svg .strong { fill: var(--on); }
.map { display: block; } .map.small { min-width: 330px; max-width: 100%; height: auto; }
.map.f11 text { font-size: 11px; } .map.f14 text { font-size: 14px; }
.scroll { overflow-x: auto; margin: 12px 0 0; } .scroll + .legend, .shrink + .legend { margin-top: 12px; }
.shrink { margin: 12px 0 0; } .shrink .map { max-width: 100%; height: auto; }
.bars { columns: 320px; column-gap: 40px; margin-top: 12px; }
.bars li { display: grid; grid-template-columns: minmax(0, 9.5em) 1fr 3.2em; gap: 10px; align-items: center;
  break-inside: avoid; font-size: 13px; padding: 2px 0; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars svg { width: 100%; height: 8px; border-radius: 4px; } .bars b { text-align: right; font-weight: 500; }
.rail { fill: var(--faint); } .fill { fill: var(--s0); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)); gap: 20px 16px; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--faint); margin-bottom: 8px; } .gallery .crisp { image-rendering: pixelated; }
.gallery span { display: block; font-size: 13px; line-height: 1.35; }
.gallery .wrong { color: var(--wrong); font-weight: 600; }
.gallery i { font-style: normal; color: var(--muted); }
.gallery .note { font-size: 12px; }
.queries > .legend { margin: 2px 0 12px; } .queries details { margin-top: 12px; }
.rows > li { display: grid; grid-template-columns: 190px minmax(0, 1fr); gap: 8px 20px; align-items: start;
  padding: 12px 0; border-top: 1px solid var(--faint); }
.rows img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 4px;
  background: var(--faint); } .rows .crisp { image-rendering: pixelated; }
.query { display: grid; grid-template-columns: 86px minmax(0, 1fr); gap: 12px; }
.query .name { font-size: 13px; font-weight: 600; line-height: 1.35; }
.query .name, .found .label { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  overflow: hidden; } .query .note, .found .note, .found .label { font-size: 12px; line-height: 1.35; }
.found { display: grid; grid-template-columns: repeat(10, minmax(0, 96px)); gap: 10px 8px; }
.found span { display: block; position: relative; border: 3px solid var(--s2); border-radius: 8px; padding: 1px;
  margin-bottom: 4px; } .found .frame-miss { border: 3px dashed var(--wrong); }
.found .frame-unknown { border: 3px solid var(--faint); }
.found .wrong { color: var(--wrong); font-weight: 600; }
.verdict { width: 16px; height: 16px; } .verdict polyline { stroke: var(--on); }
.found .verdict { position: absolute; right: -5px; top: -5px; box-shadow: 0 0 0 2px var(--card); border-radius: 50%; }
.legend .verdict { vertical-align: -3px; margin-right: 6px; }
.good circle { fill: var(--s2); } .bad circle { fill: var(--wrong); }
.trios { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 20px 24px;
  margin-top: 12px; } .trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; }
.trio img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--faint); margin-bottom: 4px; } .trio .crisp { image-rendering: pixelated; }
.trio figcaption { font-size: 12px; line-height: 1.35; }
.sides { display: grid; grid-template-columns: minmax(0, 760px) minmax(200px, 1fr); gap: 12px 24px; }
.sides .legend { display: block; columns: 150px; align-self: start; margin-top: 12px; }
.sides li { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; break-inside: avoid; padding: 1px 0; }
.sides .quiet { white-space: normal; } .scatter .halo { stroke: var(--faint); }
.scatter .scroll > svg { display: block; width: 100%; min-width: 640px; height: auto; }
.points { fill-opacity: 0.8; stroke: var(--card); stroke-width: 0.5; } .points polyline { fill: inherit;
  stroke-width: inherit; } .m0 { fill: var(--s0); } .m1 { fill: var(--s1); } .m2 { fill: var(--s2); }
.m3 { fill: var(--s3); } .m4 { fill: var(--s4); } .m5 { fill: var(--s6); }
.points text { visibility: hidden; fill-opacity: 1; } .points g:hover text { visibility: visible; }
.points:hover g { opacity: 0.15; } .points g:hover { opacity: 1; }
.names { pointer-events: none; } svg .names text { fill: var(--ink); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; font-weight: 400; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; overflow-wrap: break-word; } tbody tr:last-child > * { border-bottom: 0; }
th, thead th { color: var(--muted); }
.num { text-align: right; white-space: nowrap; padding-right: 0; padding-left: 12px; }
.facts { table-layout: fixed; } .facts th { width: 40%; } .facts td { overflow-wrap: anywhere; }
.wide { width: auto; } .wide th, .wide td { white-space: nowrap; padding: 5px 24px 5px 0; }
.wide th { white-space: normal; vertical-align: bottom; } .wide .long { white-space: normal; min-width: 300px; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
summary { padding: 12px 16px; font-weight: 600; cursor: pointer; } details > div { padding: 0 16px 16px; }
details > .scroll { margin: 0; }
pre { font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.command { white-space: pre-wrap; user-select: all; margin-top: 6px; }
:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
@media (max-width: 520px) { main { padding: 24px 16px 48px; } h1 { font-size: 28px; } .hero { font-size: 44px; }
  .card { padding: 14px 12px; } .cards { grid-template-columns: repeat(2, 1fr); }
  th, td { padding-right: 8px; } .num { padding-left: 8px; } .facts th { width: 52%; }
  .gallery { grid-template-columns: repeat(3, 1fr); gap: 14px 10px; } }
@media (max-width: 820px) { .rows > li, .sides { grid-template-columns: minmax(0, 1fr); }
  .found { grid-template-columns: repeat(5, minmax(0, 96px)); } }
@media print { body { background: none; } .card, details { break-inside: avoid; } }
"""
