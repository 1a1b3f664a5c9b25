// A Leaflet map for Gradio: one or two overlays with a divider between them, a graticule, some towns, a click.
// The widget reads a JSON text from its component's value and triggers `click` with longitude and latitude.
(function () {
  "use strict";

  var TOWNS = [
    ["Chicago", 41.88, -87.63], ["St. Louis", 38.63, -90.2], ["Memphis", 35.15, -90.05], ["Atlanta", 33.75, -84.39],
    ["Washington", 38.9, -77.04], ["New York", 40.71, -74.01], ["Minneapolis", 44.98, -93.27], ["Dallas", 32.78, -96.8],
    ["Denver", 39.74, -104.99], ["Kansas City", 39.1, -94.58], ["Los Angeles", 34.05, -118.24], ["Seattle", 47.61, -122.33],
    ["Xi'an", 34.34, 108.94], ["Zhengzhou", 34.75, 113.63], ["Jinan", 36.65, 117.12], ["Beijing", 39.9, 116.4],
    ["Nanjing", 32.06, 118.8], ["Cuiaba", -15.6, -56.1], ["Brasilia", -15.79, -47.88], ["Londrina", -23.31, -51.16],
    ["Buenos Aires", -34.6, -58.38], ["Paris", 48.86, 2.35], ["Vienna", 48.21, 16.37], ["Delhi", 28.61, 77.21],
    ["Nairobi", -1.29, 36.82], ["Melbourne", -37.81, 144.96]
  ];

  function read(props) {
    var value = props.value;
    try {
      return typeof value === "string" ? JSON.parse(value || "{}") : value || {};
    } catch (error) {
      return {};
    }
  }

  function graticule(bounds, pixels) {
    var group = L.layerGroup();
    var width = bounds[1][1] - bounds[0][1];
    // A label needs some seventy pixels.
    var step = [0.25, 0.5, 1, 2, 5, 10, 20].find(function (s) { return s / width * pixels >= 70; }) || 20;
    var style = { color: "#5f6f7a", weight: 0.7, opacity: 0.55, interactive: false, dashArray: "2 4" };
    var south = Math.max(-84, bounds[0][0] - 20), north = Math.min(84, bounds[1][0] + 20);
    var west = bounds[0][1] - 20, east = bounds[1][1] + 20;
    function label(lat, lng, text, kind) {
      group.addLayer(L.marker([lat, lng], {
        interactive: false, keyboard: false,
        icon: L.divIcon({ className: "ac-degree ac-degree-" + kind, html: text, iconSize: null })
      }));
    }
    for (var lng = Math.ceil(west / step) * step; lng <= east; lng += step) {
      group.addLayer(L.polyline([[south, lng], [north, lng]], style));
      if (lng > bounds[0][1] && lng < bounds[1][1]) {
        label(bounds[0][0], lng, Math.abs(lng) + "°" + (lng < 0 ? "W" : "E"), "x");
      }
    }
    for (var lat = Math.ceil(south / step) * step; lat <= north; lat += step) {
      group.addLayer(L.polyline([[lat, west], [lat, east]], style));
      if (lat > bounds[0][0] && lat < bounds[1][0]) {
        label(lat, bounds[0][1], Math.abs(lat) + "°" + (lat < 0 ? "S" : "N"), "y");
      }
    }
    return group;
  }

  function towns(bounds) {
    var group = L.layerGroup();
    TOWNS.forEach(function (town) {
      if (town[1] <= bounds[0][0] || town[1] >= bounds[1][0] || town[2] <= bounds[0][1] || town[2] >= bounds[1][1]) return;
      group.addLayer(L.marker([town[1], town[2]], {
        interactive: false, keyboard: false,
        icon: L.divIcon({ className: "ac-town", html: "<i></i><span>" + town[0] + "</span>", iconSize: null })
      }));
    });
    return group;
  }

  window.agriclipMap = function (element, props, trigger, watch) {
    var holder = element.querySelector(".ac-map");
    if (!holder || holder.agriclip) return;
    if (!window.L) {
      holder.textContent = "The map needs JavaScript that did not load; give longitude and latitude below.";
      return;
    }
    var map = L.map(holder, { zoomSnap: 0.25, minZoom: 2, maxZoom: 12, worldCopyJump: false, zoomAnimation: false });
    holder.agriclip = map;
    map.attributionControl.setPrefix(false);
    L.control.scale({ maxWidth: 110 }).addTo(map);
    map.createPane("first").style.zIndex = 250;
    map.createPane("second").style.zIndex = 260;
    var drawn = { first: null, second: null, extent: null, base: null, marker: null, moved: false, fitting: false };
    var divider = L.DomUtil.create("div", "ac-divider", holder);
    divider.innerHTML = "<span class='ac-side ac-left'></span><b></b><span class='ac-side ac-right'></span>";
    divider.tabIndex = 0;
    divider.setAttribute("role", "slider");
    divider.setAttribute("aria-label", "Divider between the two maps");
    L.DomEvent.disableClickPropagation(divider);
    var share = 0.5;

    function clip() {
      var swiping = !!drawn.first && !!drawn.second;
      divider.style.display = swiping ? "block" : "none";
      var first = map.getPane("first"), second = map.getPane("second");
      if (!swiping) {
        first.style.clip = second.style.clip = "";
        return;
      }
      var size = map.getSize(), a = map.containerPointToLayerPoint([0, 0]), b = map.containerPointToLayerPoint(size);
      var x = a.x + size.x * share;
      first.style.clip = "rect(" + [a.y, x, b.y, a.x].map(Math.round).join("px,") + "px)";
      second.style.clip = "rect(" + [a.y, b.x, b.y, x].map(Math.round).join("px,") + "px)";
      divider.style.left = size.x * share + "px";
      divider.setAttribute("aria-valuenow", Math.round(100 * share));
    }

    function slide(to) {
      share = Math.min(0.97, Math.max(0.03, to));
      clip();
    }

    divider.addEventListener("pointerdown", function (event) {
      event.preventDefault();
      event.stopPropagation();
      map.dragging.disable();
      divider.setPointerCapture(event.pointerId);
      function move(moved) {
        var box = holder.getBoundingClientRect();
        slide((moved.clientX - box.left) / box.width);
      }
      function up() {
        divider.removeEventListener("pointermove", move);
        divider.removeEventListener("pointerup", up);
        divider.removeEventListener("pointercancel", up);
        map.dragging.enable();
      }
      divider.addEventListener("pointermove", move);
      divider.addEventListener("pointerup", up);
      divider.addEventListener("pointercancel", up);
    });
    divider.addEventListener("keydown", function (event) {
      if (event.key === "ArrowLeft") slide(share - 0.05);
      if (event.key === "ArrowRight") slide(share + 0.05);
    });

    function overlay(pane, url, bounds) {
      if (drawn[pane]) map.removeLayer(drawn[pane]);
      drawn[pane] = url
        ? L.imageOverlay(url, bounds, { pane: pane, className: "ac-pixels", opacity: 1, alt: "map layer" }).addTo(map)
        : null;
    }

    function place(at) {
      if (drawn.marker) map.removeLayer(drawn.marker);
      drawn.marker = null;
      if (!at) return;
      drawn.marker = L.marker([at[1], at[0]], {
        interactive: false, keyboard: false,
        icon: L.divIcon({ className: "ac-pin", html: "<i></i>", iconSize: [0, 0] })
      }).addTo(map);
    }

    function fit() {
      var state = read(props);
      if (!state.bounds || !holder.clientWidth) return;
      drawn.fitting = true;
      map.invalidateSize(false);
      drawn.fitting = false;
      if (!drawn.moved) {
        // Until a visitor has moved the map it follows the size of the page.
        drawn.fitting = true;
        map.fitBounds(state.bounds, { padding: [6, 6], animate: false });
        drawn.fitting = false;
      }
      clip();
      crowd();
    }

    function show() {
      var state = read(props);
      if (!state.bounds) return;
      var extent = JSON.stringify(state.bounds);
      if (drawn.extent !== extent) {
        drawn.extent = extent;
        drawn.moved = false;
        drawn.fitting = true;
        map.setView([(state.bounds[0][0] + state.bounds[1][0]) / 2, (state.bounds[0][1] + state.bounds[1][1]) / 2], 4);
        drawn.fitting = false;
        graticule(state.bounds, holder.clientWidth || 400).addTo(map);
        if (state.towns !== false) towns(state.bounds).addTo(map);
      }
      overlay("first", state.first, state.bounds);
      overlay("second", state.second, state.bounds);
      divider.querySelector(".ac-left").textContent = state.labels ? state.labels[0] : "";
      divider.querySelector(".ac-right").textContent = state.labels ? state.labels[1] : "";
      if (state.streets && !drawn.base) {
        drawn.base = L.tileLayer("https://tile.openstreetmap.org/{z}/{x}/{y}.png", {
          attribution: "© OpenStreetMap contributors"
        }).addTo(map);
      } else if (!state.streets && drawn.base) {
        map.removeLayer(drawn.base);
        drawn.base = null;
      }
      ["first", "second"].forEach(function (pane) {
        if (drawn[pane]) drawn[pane].setOpacity(drawn.base ? 0.65 : 1);
      });
      if (state.marker !== undefined) place(state.marker);
      fit();
    }

    function crowd() {
      // Names of towns need room: some fifty pixels a degree of zoom four.
      holder.classList.toggle("ac-small", map.getZoom() < 4);
    }

    map.on("move zoom viewreset resize", clip);
    map.on("zoomend", crowd);
    map.on("zoomstart dragstart", function () {
      if (!drawn.fitting) drawn.moved = true;
    });
    map.on("click", function (event) {
      var at = event.latlng.wrap();
      place([at.lng, at.lat]);
      holder.setAttribute("data-clicked", at.lng.toFixed(4) + "," + at.lat.toFixed(4));
      trigger("click", { longitude: at.lng, latitude: at.lat });
    });
    if (window.ResizeObserver) new ResizeObserver(fit).observe(holder);
    watch("value", show);
    show();
  };
})();
